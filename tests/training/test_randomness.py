import torch

from yt8m_assets.training.randomness import derive_seed, isolated_randomness, seed_defaults

CPU = torch.device("cpu")


def test_seeds_are_stable_and_tell_their_parts_apart() -> None:
    assert derive_seed(0, "bert_l2h12", "finetuned_model") == 424278906507887674
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert all(0 <= derive_seed(number) < 2**63 for number in range(100))


def test_the_block_is_seeded_and_the_outside_untouched() -> None:
    before = torch.get_rng_state()
    with isolated_randomness(CPU, 5):
        first = torch.rand(3)
    with isolated_randomness(CPU, 5):
        assert torch.equal(torch.rand(3), first)
        seed_defaults(CPU, 6)
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
