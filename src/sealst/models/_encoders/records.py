"""Encoders by key: published ones of pathology, and the small one that is shipped; one is added by its record here.

Every architecture is a timm name with arguments that are plain JSON values. Towers with gated MLPs (SwiGLU) start from
timm's ``vit_giant_patch14_dinov2``, whose MLP they share, and override the sizes. Licences are as the model pages
stated them when the record was written; read the page before you rely on one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sealst.models._encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import pandas as pd

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_OPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_HIBOU = {"mean": (0.7068, 0.5755, 0.722), "std": (0.195, 0.2316, 0.1816)}
_LUNIT = {"mean": (0.70322989, 0.53606487, 0.66096631), "std": (0.21716536, 0.26081574, 0.20723464)}

_ND: dict[str, Any] = {"licence": "CC-BY-NC-ND-4.0", "commercial": False, "derivatives": False, "gated": True}
_APACHE: dict[str, Any] = {"licence": "Apache-2.0", "commercial": True, "derivatives": True, "gated": True}
_OWKIN: dict[str, Any] = {"licence": "Owkin non-commercial", "commercial": False}
_KAIKO: dict[str, Any] = {"licence": "kaiko-non-commercial", "commercial": False, "interpolation": "bilinear"}
_LUNIT_USE: dict[str, Any] = {"licence": "lunit-non-commercial", "commercial": False}

#: sizes of ViT-S, B, L and g
_S: dict[str, Any] = {"width": 384, "n_blocks": 12}
_B: dict[str, Any] = {"width": 768, "n_blocks": 12}
_L: dict[str, Any] = {"width": 1024, "n_blocks": 24}
_G: dict[str, Any] = {"width": 1536, "n_blocks": 40}


def _record(key: str, arch: str, n_params: float, citation: str, **facts: Any) -> EncoderSpec:
    """Record with the defaults that most encoders share; `n_params` in millions."""
    args = {"img_size": facts.get("input_px", 224)} | facts.pop("model_args", {})
    values: dict[str, Any] = {
        "patch_px": 16,
        "n_prefix": 1,
        "pool": "cls",
        "native_mpp": 0.5,
        "precision": "float32",
        "filename": "pytorch_model.bin",
    } | facts
    width = values["width"]
    dim = values.pop("dim", width * len(values["pool"].split("+")))
    return EncoderSpec(
        key=key, arch=arch, dim=dim, model_args=args, n_params=round(n_params * 1e6), citation=citation, **values
    )


_UNI = "Chen et al. 2024, Nat. Med., doi:10.1038/s41591-024-02857-3"
_CONCH = "Lu et al. 2024, Nat. Med., doi:10.1038/s41591-024-02856-4"
_TITAN = "Ding et al. 2025, Nat. Med., doi:10.1038/s41591-025-03982-3"
_MAHMOOD = (
    _record(
        "uni", "vit_large_patch16_224", 303.4, _UNI, hf_id="MahmoodLab/UNI", **_L, **_IMAGENET, **_ND,
        model_args={"init_values": 1e-5}, precision="float16", interpolation="bilinear",
    ),
    _record(
        "uni2-h", "vit_giant_patch14_reg4_dinov2", 681.4, _UNI, hf_id="MahmoodLab/UNI2-h", **_IMAGENET, **_ND,
        width=1536, n_blocks=24, n_prefix=9, patch_px=14, precision="bfloat16", interpolation="bilinear",
        model_args={"depth": 24, "reg_tokens": 8, "mlp_ratio": 5.33334},
    ),
    _record(
        "conch", "vit_base_patch16_224", 87.6, _CONCH, hf_id="MahmoodLab/conch", **_B, **_CLIP, **_ND,
        input_px=448, converter="conch", pool="attn", pools=("attn", "attn-proj", "cls"), dim=512,
        pooler_args={"dim": 512, "heads": 8, "bias": True, "projected": True},
    ),
    _record(
        "conch-v1.5", "vit_large_patch16_224", 306.1, _TITAN, **_L, **_IMAGENET, **_ND,
        hf_id="MahmoodLab/conchv1_5", filename="pytorch_model_vision.bin", input_px=448, converter="conch-v1.5",
        dim=768, pool="attn", pools=("attn",), model_args={"init_values": 1.0}, precision="float16",
        interpolation="bilinear", pooler_args={"dim": 768, "heads": 8, "bias": False, "projected": False},
    ),
)  # fmt: skip

_VIRCHOW: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 5.3375}
_PAIGE_SIZE: dict[str, Any] = {"width": 1280, "n_blocks": 32, "patch_px": 14, "precision": "float16"}
_PAIGE = (
    _record(
        "virchow", "vit_giant_patch14_dinov2", 631.2,
        "Vorontsov et al. 2024, Nat. Med., doi:10.1038/s41591-024-03141-0",
        hf_id="paige-ai/Virchow", **_PAIGE_SIZE, **_IMAGENET, **_APACHE, model_args=_VIRCHOW, pool="cls+mean",
        pools=("cls+mean", "cls"),
    ),
    _record(
        "virchow2", "vit_giant_patch14_dinov2", 631.2, "Zimmermann et al. 2024, arXiv:2408.00738",
        hf_id="paige-ai/Virchow2", **_PAIGE_SIZE, **_IMAGENET, **_ND, model_args=_VIRCHOW | {"reg_tokens": 4},
        n_prefix=5, pool="cls+mean", pools=("cls+mean", "cls"),
    ),
)  # fmt: skip

_OWKIN_BIOPTIMUS = (
    _record(
        "phikon", "vit_base_patch16_224", 85.8, "Filiot et al. 2023, medRxiv, doi:10.1101/2023.07.21.23292757",
        hf_id="owkin/phikon", **_B, **_IMAGENET, **_OWKIN, converter="hf", interpolation="bilinear",
    ),
    _record(
        "phikon-v2", "vit_large_patch16_224", 303.4, "Filiot et al. 2024, arXiv:2409.09173", hf_id="owkin/phikon-v2",
        filename="model.safetensors", **_L, **_IMAGENET, **_OWKIN, converter="hf", model_args={"init_values": 1.0},
        interpolation="bilinear",
    ),
    _record(
        "h-optimus-0", "vit_giant_patch14_reg4_dinov2", 1134.8, "Saillard et al. 2024, H-optimus-0, Bioptimus",
        hf_id="bioptimus/H-optimus-0", **_G, **_OPTIMUS, **_APACHE, n_prefix=5, patch_px=14, precision="float16",
    ),
    _record(
        "h-optimus-1", "vit_giant_patch14_reg4_dinov2", 1134.8, "Bioptimus 2025, H-optimus-1",
        hf_id="bioptimus/H-optimus-1", **_G, **_OPTIMUS, **_ND, n_prefix=5, patch_px=14, precision="float16",
    ),
    _record(
        "h0-mini", "vit_giant_patch14_reg4_dinov2", 85.7, "Filiot et al. 2025, arXiv:2501.16239",
        hf_id="bioptimus/H0-mini", **_B, **_OPTIMUS, **_ND, n_prefix=5, patch_px=14, precision="float16",
        pools=("cls", "cls+mean"),
        model_args={"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 5.33334},
    ),
)  # fmt: skip

_HIBOU_PAPER = "Nechaev et al. 2024, arXiv:2406.05074"
_KAIKO_PAPER = "Aben et al. 2024, arXiv:2404.15217"
_MIDNIGHT_PAPER = "Karasikov et al. 2025, MICCAI, doi:10.1007/978-3-032-04984-1_55"
_LUNIT_PAPER = "Kang et al. 2023, CVPR, arXiv:2212.04690"
_KAIKO_NAME, _TIMM_FILE = "kaiko_ai_towards_large_pathology_fms", {"filename": "model.safetensors"}
_OTHERS = (
    _record(
        "gigapath", "vit_giant_patch14_dinov2", 1134.9, "Xu et al. 2024, Nature, doi:10.1038/s41586-024-07441-w",
        hf_id="prov-gigapath/prov-gigapath", **_G, **_IMAGENET, licence="Apache-2.0 with conditions", gated=True,
        model_args={"patch_size": 16, "mlp_ratio": 5.33334}, precision="float16",
    ),
    _record(
        "hibou-b", "vit_base_patch14_reg4_dinov2", 85.7, _HIBOU_PAPER, hf_id="histai/hibou-b", **_TIMM_FILE, **_B,
        **_HIBOU, **_APACHE, converter="hf", n_prefix=5, patch_px=14,
    ),
    _record(
        "hibou-l", "vit_large_patch14_reg4_dinov2", 303.2, _HIBOU_PAPER, hf_id="histai/hibou-L", **_TIMM_FILE, **_L,
        **_HIBOU, **_APACHE, converter="hf", n_prefix=5, patch_px=14,
    ),
    _record(
        "kaiko-s16", "vit_small_patch16_224", 21.7, _KAIKO_PAPER, **_TIMM_FILE, **_S, **_HALF, **_KAIKO,
        hf_id=f"1aurent/vit_small_patch16_224.{_KAIKO_NAME}",
    ),
    _record(
        "kaiko-s8", "vit_small_patch8_224", 21.7, _KAIKO_PAPER, **_TIMM_FILE, **_S, **_HALF, **_KAIKO, patch_px=8,
        hf_id=f"1aurent/vit_small_patch8_224.{_KAIKO_NAME}",
    ),
    _record(
        "kaiko-b16", "vit_base_patch16_224", 85.8, _KAIKO_PAPER, **_TIMM_FILE, **_B, **_HALF, **_KAIKO,
        hf_id=f"1aurent/vit_base_patch16_224.{_KAIKO_NAME}",
    ),
    _record(
        "kaiko-b8", "vit_base_patch8_224", 85.8, _KAIKO_PAPER, **_TIMM_FILE, **_B, **_HALF, **_KAIKO, patch_px=8,
        hf_id=f"1aurent/vit_base_patch8_224.{_KAIKO_NAME}",
    ),
    # The hub's name says 224; the file has the position grid of 518 px.
    _record(
        "kaiko-l14", "vit_large_patch14_reg4_dinov2", 304.4, _KAIKO_PAPER, **_TIMM_FILE, **_L, **_HALF, **_KAIKO,
        hf_id=f"1aurent/vit_large_patch14_reg4_224.{_KAIKO_NAME}", n_prefix=5, patch_px=14,
        model_args={"img_size": 518},
    ),
    _record(
        "gpfm", "vit_large_patch14_dinov2", 303.2, "Ma et al. 2025, Nat. Biomed. Eng., doi:10.1038/s41551-025-01488-4",
        hf_id="majiabo/GPFM", filename="GPFM.pth", **_L, **_IMAGENET, **(_ND | {"gated": False}), converter="dino",
        patch_px=14, precision="float16",
    ),
    _record(
        "lunit-s16", "vit_small_patch16_224", 21.7, _LUNIT_PAPER, **_TIMM_FILE, **_S, **_LUNIT, **_LUNIT_USE,
        hf_id="1aurent/vit_small_patch16_224.lunit_dino",
    ),
    _record(
        "lunit-s8", "vit_small_patch8_224", 21.7, _LUNIT_PAPER, **_TIMM_FILE, **_S, **_LUNIT, **_LUNIT_USE,
        hf_id="1aurent/vit_small_patch8_224.lunit_dino", patch_px=8,
    ),
    _record(
        "midnight", "vit_giant_patch14_dinov2", 1134.8, _MIDNIGHT_PAPER,
        hf_id="kaiko-ai/midnight", **_TIMM_FILE, **_G, **_HALF, licence="MIT", commercial=True, derivatives=True,
        converter="hf", patch_px=14, precision="float16", pools=("cls", "cls+mean"), interpolation="bilinear",
    ),
)  # fmt: skip

_WAIV_PAPER = "Filiot et al. 2026, arXiv:2607.22861"
_WAIV: dict[str, Any] = {"licence": "Waiv non-commercial", "commercial": False, "gated": True, "precision": "auto"}
_WAIV |= {"interpolation": "bilinear"}
#: sizes of towers whose gated MLPs have another ratio
_FLASH: dict[str, Any] = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 2048 / 384}
_CROWN: dict[str, Any] = {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 5472 / 1024}
_OF_2026 = (
    _record(
        "gigapath-flash", "vit_giant_patch14_dinov2", 21.7, "Usuyama et al. 2026, arXiv:2607.18218",
        hf_id="prov-gigapath/prov-gigapath-flash", **_S, **_IMAGENET, licence="Apache-2.0", gated=True,
        model_args=_FLASH, precision="auto",
    ),
    _record(
        "open-midnight", "vit_giant_patch14_reg4_dinov2", 1134.9, "Kaplan et al. 2025, OpenMidnight, SophontAI",
        hf_id="SophontAI/OpenMidnight", filename="teacher_checkpoint_load.pt", **_G, **_IMAGENET, **_APACHE,
        converter="dino", n_prefix=5, patch_px=14, interpolation="bilinear", precision="auto",
    ),
    # Of cytology, not of sections.
    _record(
        "crown", "vit_giant_patch14_dinov2", 303.4, "Zheng et al. 2026, Nat. Cancer, doi:10.1038/s43018-026-01240-0",
        hf_id="LexieK/Crown", filename="CROWN.pth", **_L, **_IMAGENET, **_APACHE, converter="dino", model_args=_CROWN,
        interpolation="bilinear", precision="auto",
    ),
    # The tower's class token; what is compared with text lies behind a projection that is left out.
    _record(
        "keep", "vit_large_patch16_224", 303.4, "Zhou et al. 2026, Cancer Cell, doi:10.1016/j.ccell.2026.01.019",
        hf_id="Astaxanthin/KEEP", **_TIMM_FILE, **_L, **_IMAGENET, licence="MIT", commercial=True, derivatives=True,
        converter="keep", model_args={"init_values": 1e-5}, precision="auto",
    ),
    # Midnight and Phikon-v2, trained further; their users scale the class token to unit length.
    _record(
        "mascaret", "vit_giant_patch14_dinov2", 1134.8, _WAIV_PAPER, hf_id="wearewaiv/mascaret", **_TIMM_FILE, **_G,
        **_HALF, **_WAIV, converter="hf", patch_px=14,
    ),
    _record(
        "phaet", "vit_large_patch16_224", 303.4, _WAIV_PAPER, hf_id="wearewaiv/phaet", **_TIMM_FILE, **_L, **_IMAGENET,
        **_WAIV, converter="hf", model_args={"init_values": 1.0},
    ),
)  # fmt: skip

_SHIPPED = (
    # Has never seen a real picture: for demonstrations, tutorials and tests.
    _record(
        "sealst-tiny", "vit_tiny_patch16_224", 1.295, "sealst, benchmarks/pretrain_tiny.py", **_HALF, width=128,
        n_blocks=6, model_args={"embed_dim": 128, "depth": 6, "num_heads": 4}, input_px=112, native_mpp=1.0,
        pool="cls+mean", pools=("cls+mean", "cls"), filename="sealst-tiny.safetensors", licence="BSD-3-Clause",
        commercial=True, derivatives=True,
    ),
)  # fmt: skip

#: one record for each published set of weights; pooling variants follow from `pools`
RECORDS: tuple[EncoderSpec, ...] = (*_MAHMOOD, *_PAIGE, *_OWKIN_BIOPTIMUS, *_OTHERS, *_OF_2026, *_SHIPPED)

_OWN_VECTORS = (
    "Embed with its authors' package and put the vectors into .obsm, or take another encoder, see "
    "`sl.models.list_encoders()`."
)
#: encoders that people ask for and that cannot be had as they should be, and why
REFUSED = {
    "musk": (
        "MUSK is not listed: its BEiT-3 tower exists only as code of its authors' package, and sealst runs no remote "
        f"code. {_OWN_VECTORS}"
    ),
    **dict.fromkeys(
        ("rudolfv2", "rudolfv2-b", "rudolfv2-s"),
        "RudolfV-2 is not listed: its towers exist only as code in the model's repository, and sealst runs no remote "
        f"code. {_OWN_VECTORS}",
    ),
    "genbio-pathfm": (
        "GenBio-PathFM is not listed: it sees every colour channel by itself, which no tower of timm does, and exists "
        f"only as code in the model's repository. {_OWN_VECTORS}"
    ),
    "ctranspath": (
        "CTransPath is not listed: a Swin transformer that begins with convolutions, which no model of timm does. "
        f"{_OWN_VECTORS}"
    ),
}


_COLUMNS = [
    *("dim", "input_px", "native_mpp", "pool", "pools", "patch_px", "n_blocks", "precision", "licence", "gated"),
    *("commercial", "derivatives", "n_params", "variant_of", "hf_id", "citation"),
]


def _registry() -> Mapping[str, EncoderSpec]:
    found = {}
    for record in RECORDS:
        found[record.key] = record
        # The same weights give vectors of another meaning under another pooling, so these have names of their own.
        for pool in record.pools[1:]:
            key = f"{record.key}-{pool}"
            found[key] = replace(record, key=key, pool=pool, dim=record.dim_of(pool), variant_of=record.key)
    return MappingProxyType(found)


#: every key that `build_encoder` takes beside timm's names
REGISTRY = _registry()


def list_encoders() -> pd.DataFrame:
    """Encoders that `build_encoder` knows by key: published ones of pathology, and ``"sealst-tiny"``.

    The latter is shipped with sealst and has seen nothing but drawn tissue: for demonstrations, no research. Any timm
    vision transformer and any local timm folder work too; they are not listed.

    Returns
    -------
    Table, one row per key (the index): dim (length of the embedding), input_px, native_mpp (µm per pixel), pool (the
    key's own), pools (others that are published), patch_px, n_blocks, precision, licence, gated, commercial,
    derivatives (whether changed weights may be shared; None where the licence has to be read), n_params, variant_of
    (the key whose weights these are, pooled otherwise), hf_id, citation.

    Examples
    --------
    >>> import sealst as sl
    >>> int(sl.models.list_encoders().loc["conch", "dim"])
    512
    """
    rows = {
        key: {c: getattr(spec, c) for c in _COLUMNS} | {"pools": ", ".join(spec.pools)}
        for key, spec in REGISTRY.items()
    }
    import pandas as pd

    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("key")
