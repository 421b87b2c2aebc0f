"""Networks, blocks and prices for the tests of sparsify."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirl_sparse.performance.cost import CostModel
from mirl_sparse.sparsification import CpuTarget, sparsify_for


class SparseIsFree(CostModel):
    """Prices by which every layer that can be swapped is."""

    def __init__(self) -> None:
        super().__init__({})

    def seconds(self, quantities) -> float:
        return float("torch call" in quantities)


class DenseIsFree(SparseIsFree):
    def seconds(self, quantities) -> float:
        return float("torch call" not in quantities)


def sparsify(
    module: nn.Module, example_input=None, prices: CostModel | None = None, keep_dense=()
) -> nn.Module:
    """Sparsify for a CPU of these prices; by default the sparse form of every layer is free."""
    return sparsify_for(CpuTarget(prices or SparseIsFree()), module, example_input, keep_dense)


def pruned(module: nn.Module, density: float = 0.2, seed: int = 0) -> nn.Module:
    """Random weights of which a share is kept."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.ndim > 1 else 0.1) + (p.ndim == 1))
            if p.ndim > 1:
                p.mul_(torch.rand(p.shape, generator=g) < density)
    return module.eval()


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def same(sparsified: nn.Module, dense: nn.Module, *args) -> None:
    with torch.no_grad():
        expected, got = dense(*args), sparsified(*args)
    torch.testing.assert_close(got, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def implementations(sparsified: nn.Module) -> dict[str, str]:
    return {x.name: x.implementation for x in sparsified.report.layers}


def reason_not_fused(sparsified: nn.Module, name: str) -> str:
    """Return the report's reason why a block runs layer by layer."""
    (row,) = (x for x in sparsified.report.layers if x.name == name)
    assert row.implementation == "layer by layer"
    return row.reason


class Zoo(nn.Module):
    """A bit of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)
        )
        self.shared = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(1, 2))
        self.down = nn.Conv2d(8, 12, 2, stride=2, bias=False)
        self.depthwise = nn.Conv2d(12, 24, 7, padding=3, groups=12)
        self.norm, self.mix = nn.LayerNorm(24), nn.Linear(24, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.up = nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1)
        self.tail = nn.Conv2d(8, 3, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.head(image)
        x = self.shared(self.shared(x + self.body(x)))
        y = self.depthwise(self.down(x))
        tokens = self.mix(self.norm(y.flatten(2).transpose(1, 2)))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        y = tokens.transpose(1, 2).unflatten(-1, y.shape[2:])
        return self.tail(F.pad(x + self.up(y), (1, 1, 1, 1)))


IMAGE = rand(2, 3, 14, 22)


class Norm(nn.Module):
    def __init__(self, channels: int, centred: bool, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.body, self.small = nn.Module(), epsilon
        self.body.weight = nn.Parameter(torch.ones(channels))
        if centred:
            self.body.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        bias = getattr(self.body, "bias", None)
        x = (
            (x if bias is None else x - mean)
            / torch.sqrt(variance + self.small)
            * self.body.weight[:, None, None]
        )
        return x if bias is None else x + bias[:, None, None]


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(1, (len(self.temperature), -1)).flatten(3)
            for t in self.qkv_dwconv(self.qkv(x)).chunk(3, 1)
        )
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.project_out((logits.softmax(-1) @ v).reshape(x.shape))


class FeedForward(nn.Module):
    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 4 * channels, 1, bias=bias)
        self.dwconv = nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels, bias=bias)
        self.project_out = nn.Conv2d(2 * channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(a) * b)


class Block(nn.Module):
    """A block of Restormer's family; ``scale`` makes it look like one that it is not."""

    def __init__(
        self,
        channels: int = 8,
        heads: int = 2,
        bias: bool = False,
        centred: bool = True,
        scale: float = 1.0,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1, self.attn = Norm(channels, centred, epsilon), Attention(channels, heads, bias)
        self.norm2, self.ffn = Norm(channels, centred, epsilon), FeedForward(channels, bias)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.scale * self.ffn(self.norm2(x))


class NAFBlock(nn.Module):
    """A block of NAFNet's."""

    def __init__(self, channels: int = 8, bias: bool = True, pooled: nn.Module | None = None) -> None:
        super().__init__()
        c = channels
        self.norm1, self.norm2 = nn.LayerNorm(c, eps=1e-6), nn.LayerNorm(c, eps=1e-6)
        self.conv1 = nn.Conv2d(c, 2 * c, 1, bias=bias)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c, bias=bias)
        self.conv3, self.conv5 = nn.Conv2d(c, c, 1, bias=bias), nn.Conv2d(c, c, 1, bias=bias)
        self.sca = nn.Sequential(pooled or nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1, bias=bias))
        self.conv4 = nn.Conv2d(c, 2 * c, 1, bias=bias)
        self.beta, self.gamma = nn.Parameter(torch.ones(1, c, 1, 1)), nn.Parameter(torch.ones(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        def norm(by: nn.LayerNorm, x: Tensor) -> Tensor:
            return by(x.movedim(1, -1)).movedim(-1, 1)

        left, right = self.conv2(self.conv1(norm(self.norm1, x))).chunk(2, 1)
        x = x + self.conv3(left * right * self.sca(left * right)) * self.beta
        left, right = self.conv4(norm(self.norm2, x)).chunk(2, 1)
        return x + self.conv5(left * right) * self.gamma
