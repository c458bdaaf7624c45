from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sealst as sl
from sealst.models import GeneVAE, GeneVAEParams
from sealst.models._genes import PlanarFlow


@given(seed=st.integers(0, 10_000), dim=st.integers(1, 6), scale=st.floats(0.1, 5.0))
@settings(max_examples=40, deadline=None)
def test_planar_flow_log_det_is_that_of_its_jacobian_and_it_is_invertible(seed, dim, scale):
    torch.manual_seed(seed)
    flow = PlanarFlow(dim).double()
    with torch.no_grad():
        flow.u.normal_(std=scale)
        flow.w.normal_(std=scale)
        flow.b.normal_()
    z = torch.randn(1, dim, dtype=torch.float64)
    _, log_det = flow(z)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v)[0], z)[0, :, 0, :]
    determinant = torch.linalg.det(jacobian)
    assert determinant > 0
    torch.testing.assert_close(log_det[0].exp(), determinant, rtol=1e-5, atol=1e-9)


def test_code_is_the_mean_unless_asked_to_sample():
    vae = GeneVAE(30, 8, GeneVAEParams(hidden=(16,))).eval()
    x = torch.randn(5, 30)
    assert torch.equal(vae(x).z, vae(x).z)
    assert not torch.equal(vae(x, sample=True).z, vae(x, sample=True).z)
    z = vae(x).mu
    for flow in vae.flows:
        z, _ = flow(z)
    torch.testing.assert_close(vae(x).z, z)


@pytest.mark.parametrize(("hidden", "flows"), [((), 0), ((12,), 1), ((16, 12, 8), 3)])
def test_shapes_follow_the_parameters(hidden, flows):
    vae = GeneVAE(30, 8, GeneVAEParams(hidden=hidden, n_flows=flows))
    code = vae(torch.randn(5, 30))
    assert code.z.shape == code.mu.shape == code.logvar.shape == (5, 8)
    assert code.log_det.shape == (5,)
    assert vae.decode(code.z).shape == (5, 30)
    assert len(vae.flows) == flows


def test_dropout_must_be_a_fraction():
    with pytest.raises(sl.DataError, match="`gene_encoder.dropout` must be"):
        GeneVAEParams(dropout=1.5)
