"""Building blocks with TensorFlow's conventions (SPEC section 3): batch norm, L2 normalisation, initialisers.

Shape letters: S stacked branches, R rows of a batch (videos, or videos x frames), F features.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3
L2_NORM_EPS = 1e-12


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal distribution cut at two standard deviations, as TensorFlow's initialiser."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def he_(tensor: Tensor, fan_in: int) -> Tensor:
    """Fill with slim's variance-scaling initialiser: truncated normal, sd sqrt(1.3 * 2 / fan_in)."""
    return truncated_normal_(tensor, math.sqrt(1.3 * 2 / fan_in))


def he_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Make a linear layer with He weights and zero bias."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    he_(layer.weight, in_features)
    return zero_bias(layer)


def glorot_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Make a linear layer with Glorot uniform weights and zero bias."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    return zero_bias(layer)


def normal_linear(in_features: int, out_features: int) -> nn.Linear:
    """Make a linear layer without bias, with normal weights of sd 1 / sqrt(in_features)."""
    layer = nn.Linear(in_features, out_features, bias=False)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(in_features))
    return layer


def zero_bias(layer: nn.Linear) -> nn.Linear:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """Scale to unit L2 norm along a dimension, in float32 at least: `x * rsqrt(max(sum x^2, 1e-12))`."""
    x = at_least_float32(x)
    return x * x.square().sum(dim, keepdim=True).clamp(min=L2_NORM_EPS).rsqrt()


def at_least_float32(x: Tensor) -> Tensor:
    """Leave float32 and float64 alone, widen the rest: normalisations and softmaxes never run in bfloat16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class BatchNorm(nn.Module):
    """Batch normalisation over rows, as slim's: eps 1e-3, and either convention for the tracked variance.

    Normalisation always uses the biased batch variance. What goes into `running_var` is unbiased (n / (n - 1)) where
    the original ran TensorFlow's fused kernel and biased elsewhere; torch's own BatchNorm is always unbiased. Rows may
    carry counts: then the statistics are those of a batch in which each row is repeated that often.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, unbiased: bool, momentum: float) -> None:
        super().__init__()
        self.unbiased = unbiased
        self.momentum = momentum
        self.synchronized = False
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x_RF: Tensor, counts_R: Tensor | None = None) -> Tensor:
        """Normalise [R, F]; in training by the batch's own statistics, which also move the running ones."""
        return stacked_batch_norm([self], x_RF[None], counts_R)[0]

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, unbiased={self.unbiased}, momentum={self.momentum}"

    @torch.no_grad()
    def track(self, mean_F: Tensor, var_F: Tensor, num_rows: Tensor) -> None:
        """Move the running statistics towards those of a batch of num_rows rows (after counting)."""
        if self.unbiased:
            # A single row has no unbiased variance; TensorFlow's kernel divides by max(n - 1, 1) too.
            var_F = var_F * (num_rows / (num_rows - 1).clamp(min=1))
        self.running_mean.lerp_(mean_F.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var_F.to(self.running_var.dtype), self.momentum)


def stacked_batch_norm(norms: Sequence[BatchNorm], x_SRF: Tensor, counts_R: Tensor | None = None) -> Tensor:
    """Apply S batch norms to S stacked batches [S, R, F] at once. Returns [S, R, F], in float32 at least."""
    x_SRF = at_least_float32(x_SRF)
    weight_S1F = torch.stack([norm.weight for norm in norms])[:, None]
    bias_S1F = torch.stack([norm.bias for norm in norms])[:, None]
    if not norms[0].training:
        mean_S1F = torch.stack([norm.running_mean for norm in norms])[:, None]
        var_S1F = torch.stack([norm.running_var for norm in norms])[:, None]
        scale_S1F = weight_S1F * (var_S1F + BATCH_NORM_EPS).rsqrt()
        return torch.addcmul(bias_S1F - mean_S1F * scale_S1F, x_SRF, scale_S1F)
    if counts_R is not None:
        counts_R = counts_R.to(x_SRF.dtype)
    mean_S1F, var_S1F, num_rows = _batch_statistics(x_SRF, counts_R, norms[0].synchronized)
    for norm, mean_1F, var_1F in zip(norms, mean_S1F, var_S1F, strict=True):
        norm.track(mean_1F[0], var_1F[0], num_rows)
    scale_S1F = weight_S1F * (var_S1F + BATCH_NORM_EPS).rsqrt()
    return torch.addcmul(bias_S1F, x_SRF - mean_S1F, scale_S1F)


def _batch_statistics(x_SRF: Tensor, counts_R: Tensor | None, synchronized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance [S, 1, F] over the (counted) rows of every process, and the number of rows."""
    if counts_R is None:
        num_rows = x_SRF.new_full((), x_SRF.shape[1])
    else:
        num_rows = counts_R.sum()
    mean_S1F = _total(x_SRF, counts_R, synchronized)
    if synchronized:
        num_rows = _sum_over_processes(num_rows)
    mean_S1F = mean_S1F / num_rows
    var_S1F = _total((x_SRF - mean_S1F).square(), counts_R, synchronized) / num_rows
    return mean_S1F, var_S1F, num_rows


def _total(x_SRF: Tensor, counts_R: Tensor | None, synchronized: bool) -> Tensor:
    if counts_R is None:
        total_S1F = x_SRF.sum(1, keepdim=True)
    else:
        with torch.autocast(x_SRF.device.type, enabled=False):  # it would make a bfloat16 product of this sum
            total_S1F = (counts_R @ x_SRF)[:, None]
    return _sum_over_processes(total_S1F) if synchronized else total_S1F


def _sum_over_processes(value: Tensor) -> Tensor:
    # Imported here: not every build of torch has it, and only training over several processes needs it.
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(value)


def synchronize_batch_norm(model: nn.Module, enabled: bool = True) -> None:
    """Let every batch norm of a model share its statistics over the processes of torch.distributed's default group."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.synchronized = enabled
