"""The projection of a few rows, which the CPU takes the other way round."""

import pytest
import torch
import torch.nn.functional as F

from hybrid.linear import product


@pytest.mark.parametrize(("d_in", "d_out"), [(256, 300), (128, 256), (1024, 256), (1025, 256), (64, 300), (256, 100)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (4, 1), (5, 1), (2, 2), (6, 1), (1, 4)])
def test_it_is_the_product_whatever_the_shape(shape: tuple[int, int], d_in: int, d_out: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(*size, generator=generator) for size in ((*shape, d_in), (d_out, d_in)))
    with torch.no_grad():
        found = product(x, weight)
    assert found.is_contiguous()
    torch.testing.assert_close(found, F.linear(x, weight), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product(x.requires_grad_(), weight), F.linear(x, weight), rtol=0, atol=0)
