"""The original's fusion constants (SPEC section 11)."""

from types import MappingProxyType

TTA_W0 = 3.72384689385059
"""w0 with which the original fuses the shifts of one model, all with weight 1."""
ORIGINAL_W0 = 6.058430980648939
"""w0 of the original's final fusion of nine models."""
ORIGINAL_WEIGHTS = MappingProxyType(
    {
        "gated_netvlad_h1024c16": 1.108667853,
        "bert_l2h12": 14.28880107,
        "bert_cross_mean_l2h8": 24.89993526,
        "bert_l3h12": 70.49505912,
        "bert_cross_attn_l2h8": 30.31334691,
        "bert_first_l2h12": 99.90311048,
        "mix_nextvlad_iter300": 101.7196348,
        "mix_nextvlad_iter60": 87.66822585,
        "bert_mean_l2h12": 78.51473969,
    }
)
"""The original's final weight of each model."""
