"""The module: its state, its kernels, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sla_ckpt.attention import SparseLinearAttention, available_kernels, resolve_kernel
from sla_ckpt.attention import kernels as kernels_module
from sla_ckpt.attention.reference import sla_reference
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import ProjectionTensors, SLASettings

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16


def trained(head_dim: int, device: torch.device, **options) -> SparseLinearAttention:
    torch.manual_seed(0)
    module = SparseLinearAttention(head_dim, **options).to(device)
    nn.init.normal_(module.proj_l.weight, std=head_dim**-0.5)
    nn.init.normal_(module.proj_l.bias)
    return module


def qkv(device: torch.device, length: int = 200, dim: int = 32, dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.randn(1, 2, length, dim, device=device, dtype=dtype) for _ in range(3)]


def test_state_dict_is_thu_mls() -> None:
    state = SparseLinearAttention(40).state_dict()
    assert list(state) == ["proj_l.weight", "proj_l.bias"]
    assert [tuple(x.shape) for x in state.values()] == [(40, 40), (40,)]
    assert all(x.dtype == torch.float32 and not x.any() for x in state.values())


def test_projection_travels_to_the_module_and_back() -> None:
    rng = np.random.default_rng(0)
    tensors = ProjectionTensors(
        rng.normal(size=(16, 16)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    )
    module = SparseLinearAttention.from_settings(16, SLASettings(topk=0.5, blkq=128))
    module.load_projection(tensors)
    assert module.projection().equals(tensors)
    assert module.settings == SLASettings(topk=0.5, blkq=128)


def test_projection_is_a_copy() -> None:
    module = SparseLinearAttention(8)
    before = module.projection()
    with torch.no_grad():
        module.proj_l.weight.add_(1)
    assert before.is_zero


def test_projection_of_another_head_dim_is_refused() -> None:
    with pytest.raises(AttentionError, match=r"\(8, 8\).*head_dim 16"):
        SparseLinearAttention(16).load_projection(ProjectionTensors.zeros(8))


def test_untrained_module_is_the_sparse_branch(device: torch.device) -> None:
    module = SparseLinearAttention(32, kernel="reference").to(device)
    q, k, v = qkv(device)
    o_s, _ = module.branches(q, k, v)
    assert torch.equal(module(q, k, v), o_s)


@pytest.mark.parametrize("variant", ["main", "sla-1"])
def test_kernels_agree(variant: str, device: torch.device) -> None:
    q, k, v = qkv(device, dtype=HALF)
    outputs, gradients = [], []
    for kernel in ("triton", "reference"):
        module = trained(32, device, topk=0.5, variant=variant, kernel=kernel)
        outputs.append(module(q, k, v))
        outputs[-1].float().square().sum().backward()
        gradients.append(module.proj_l.weight.grad)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=2e-2, atol=2e-2)
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 1e-2


@pytest.mark.parametrize("variant", ["main", "sla-1"])
def test_branches_add_up_in_every_kernel(variant: str, device: torch.device) -> None:
    q, k, v = qkv(device, dtype=HALF)
    for kernel in ("triton", "reference"):
        module = trained(32, device, topk=0.5, variant=variant, kernel=kernel)
        with torch.no_grad():
            o_s, o_l = module.branches(q, k, v)
            want = o_s.float() + module.proj_l(o_l.float())
            got = module(q, k, v).float()
        assert o_s.dtype == o_l.dtype == HALF
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_projection_gradient_is_float32(device: torch.device) -> None:
    module = trained(32, device, topk=0.5)
    module(*qkv(device, dtype=HALF)).float().sum().backward()
    assert module.proj_l.weight.grad.dtype == torch.float32
    assert module.proj_l.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("kernel", ["triton", "reference"])
def test_autocast_casts_float32_and_keeps_the_projection(kernel: str, device: torch.device) -> None:
    module = trained(32, device, topk=0.5, kernel=kernel)
    q, k, v = qkv(device)
    with torch.autocast(device.type, dtype=HALF):
        out = module(q, k, v)
    assert out.dtype == HALF
    want = module(*(x.to(HALF) for x in (q, k, v)))
    assert torch.equal(out, want)


def test_float32_stays_float32(device: torch.device) -> None:
    module = trained(32, device, topk=0.5)
    q, k, v = qkv(device)
    out = module(q, k, v)
    options = module.settings.to_dict()
    want = sla_reference(q, k, v, module.proj_l.weight, module.proj_l.bias, **options)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, want, rtol=3e-2, atol=3e-2)


def test_one_module_learns_on_fixed_data(device: torch.device) -> None:
    module = SparseLinearAttention(16, topk=0.3).to(device)
    q, k, v = qkv(device, dim=16, dtype=HALF)
    target = torch.nn.functional.scaled_dot_product_attention(q, k, v).float()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = (module(q, k, v).float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0.0}, "topk 0.0"),
        ({"topk": 1.5}, "topk 1.5"),
        ({"topk": float("nan")}, "topk nan"),
        ({"blkq": 32}, "blkq 32"),
        ({"blkk": 32}, "blkk 32"),
        ({"feature_map": "hedgehog"}, "hedgehog"),
        ({"variant": "sla-2"}, "sla-2"),
        ({"kernel": "cuda"}, "'cuda'"),
    ],
    ids=lambda x: str(x),
)
def test_impossible_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(AttentionError, match=message):
        SparseLinearAttention(16, **options)


def test_inputs_that_do_not_fit_are_named() -> None:
    module = SparseLinearAttention(16, kernel="reference")
    x = torch.zeros(1, 2, 10, 16)
    with pytest.raises(AttentionError, match=r"\[B, H, L, D\]"):
        module(x[0], x[0], x[0])
    with pytest.raises(AttentionError, match="same B, H and D"):
        module(x, x[:, :1], x[:, :1])
    with pytest.raises(AttentionError, match="as many keys as values"):
        module(x, x, x[:, :, :5])
    with pytest.raises(AttentionError, match="head_dim 16"):
        module(x[..., :8], x[..., :8], x[..., :8])
    with pytest.raises(AttentionError, match="one float dtype"):
        module(x, x.half(), x)
    with pytest.raises(AttentionError, match="at least one token"):
        module(x[:, :, :0], x[:, :, :0], x[:, :, :0])


def test_module_on_another_device_is_named() -> None:
    module = SparseLinearAttention(16, kernel="reference").to("meta")
    x = torch.zeros(1, 2, 10, 16)
    with pytest.raises(AttentionError, match="proj_l is on meta"):
        module(x, x, x)


def choose(kernel: str, device: str = "cpu", dtype=torch.float32, head_dim: int = 64) -> str:
    return resolve_kernel(
        kernel, device=device, dtype=dtype, head_dim=head_dim, settings=SLASettings()
    )


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels_module, "interpreting", lambda: False)
    available_kernels.cache_clear()
    yield
    available_kernels.cache_clear()


def test_auto_takes_the_reference_on_cpu() -> None:
    assert choose("auto") == "reference"


def test_auto_takes_the_reference_for_float64_and_wide_heads(device: torch.device) -> None:
    assert choose("auto", device.type, torch.float64) == "reference"
    assert choose("auto", device.type, torch.float32, 512) == "reference"


def test_triton_on_cpu_says_why_not(no_interpreter) -> None:
    with pytest.raises(AttentionError, match="CUDA"):
        choose("triton")


def test_triton_refuses_float64_and_wide_heads(device: torch.device) -> None:
    with pytest.raises(AttentionError, match="float64"):
        choose("triton", device.type, torch.float64)
    with pytest.raises(AttentionError, match="head_dim 512"):
        choose("triton", device.type, HALF, 512)


def test_every_kernel_says_whether_it_can_run() -> None:
    assert set(available_kernels()) == {"triton", "reference", "external"}
    assert available_kernels()["reference"] == "ok"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_triton_on_cuda() -> None:
    assert choose("auto", "cuda", torch.bfloat16) == "triton"
