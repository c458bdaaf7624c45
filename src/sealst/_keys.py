"""Names of every slot that sealst writes; documented for users in ``docs/outputs.md``."""

from __future__ import annotations


class Keys:
    """Default slot names."""

    TABLE = "table"
    UNS = "sealst"
    #: coordinate system in which one unit is one µm
    UM = "um"

    # .obs
    PATIENT = "patient"
    SECTION = "section"
    ORGAN = "organ"
    TECHNOLOGY = "technology"
    ARRAY_ROW = "array_row"
    ARRAY_COL = "array_col"
    CROP_OK = "crop_ok"
    CROP_REASON = "crop_reason"
    TISSUE_FRACTION = "tissue_fraction"
    SIMILARITY = "seal_similarity"
    ANNOTATION = "seal_annotation"
    ATTENTION = "seal_attention"
    NOVELTY = "seal_novelty"

    # .obsm
    SPATIAL = "spatial"
    EMBEDDING = "X_seal"
    GENE_EMBEDDING = "X_seal_gene"
    FIELDS = "X_seal_fields"
    FROZEN = "X_frozen"
    EXPRESSION = "seal_expression"
    PATHWAYS = "seal_pathways"

    # .uns, beside UNS
    PATHWAY_RANKS = "seal_rank_pathways"

    # .var
    GENE_ORIGINAL = "gene_original"
    ENSEMBL = "ensembl"

    # .layers
    COUNTS = "counts"
    LOGNORM = "lognorm"
    CONTEXT = "context"
    #: what `.X` was in an AnnData whose raw counts were in a layer
    GIVEN = "X_given"

    @staticmethod
    def related(key: str, what: str) -> str:
        """Slot beside one that a call writes (its `key_added`), such as the ranks beside similarities."""
        return f"{key}_{what}"

    @staticmethod
    def pathways(expression_key: str) -> str:
        """Scores of gene sets on predicted expression, by the slot of that expression."""
        return Keys.PATHWAYS if expression_key == Keys.EXPRESSION else Keys.related(expression_key, "pathways")

    @staticmethod
    def limits(expression_key: str) -> tuple[str, str]:
        """Lower and upper limits of predicted expression, by the slot of that expression."""
        return Keys.related(expression_key, "low"), Keys.related(expression_key, "high")

    @staticmethod
    def image(section: str) -> str:
        """Image element of a section."""
        return f"{section}_he"

    @staticmethod
    def spots(section: str) -> str:
        """Shapes element (circles) of a section; also its region in the table."""
        return f"{section}_spots"

    @staticmethod
    def cells(section: str) -> str:
        """Shapes element (polygons) of the cells that readers find beside a section."""
        return f"{section}_cells"

    @staticmethod
    def nuclei(section: str) -> str:
        """Shapes element of the nuclei of these cells."""
        return f"{section}_nuclei"

    @staticmethod
    def crops(region: str) -> str:
        """Shapes element (squares) that `pp.pair_crops` writes for a region."""
        return f"{region}_crops"

    @staticmethod
    def crop_size(region: str, um: str) -> str:
        """Shapes element (squares) of a further crop size in µm."""
        return f"{region}_crops_{um}um"

    @staticmethod
    def tissue(section: str) -> str:
        """Labels element that `pp.tissue` writes for a section."""
        return f"{section}_tissue"

    @staticmethod
    def quality(metric: str) -> str:
        """Column of ``.obs`` that `pp.quality` writes for a metric."""
        return f"quality_{metric}"

    @staticmethod
    def normalised_image(image: str) -> str:
        """Image that `pp.normalize_stain` writes for an image."""
        return f"{image}_norm"
