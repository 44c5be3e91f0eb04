"""The labelled probe of image encoders: its labels are what is seen, and it goes on where it stopped."""

import json

import torch

from scrubjay.envs.ballet.world import COLOUR_NAMES, COLOURS, MOVES
from scrubjay.experiments.quality.images import ImageProbe, ImagesProbe, iterate_ballets, run


def cells(frames):
    """Return the mean colours of the 11 x 11 cells."""
    return frames.unflatten(1, (11, 9)).unflatten(3, (11, 9)).float().amax(dim=(2, 4))


def test_the_one_who_moves_is_of_the_colour_and_goes_where_it_is_said():
    ballets = iterate_ballets(16, 3, 5)
    for _, moment in zip(range(20), ballets, strict=False):
        before, now = cells(moment.frames[..., :3]), cells(moment.frames[..., 3:])
        # Of every pair of frames one cell at least has changed: the mover's old or new one.
        has_changed = (before != now).any(dim=3)
        assert has_changed.flatten(1).any(dim=1).all()
        for row in range(16):
            colour = torch.tensor(COLOURS[COLOUR_NAMES[int(moment.colour[row])]]).float()
            is_mover = (now[row] == colour).all(dim=2) | (before[row] == colour).all(dim=2)
            assert (is_mover & has_changed[row]).any()


def test_ballets_never_end_and_are_drawn_by_their_seed():
    first, again, other = (iterate_ballets(2, 1, seed) for seed in (1, 1, 2))
    for _ in range(20):
        one, same, another = next(first), next(again), next(other)
        assert torch.equal(one.frames, same.frames)
        assert torch.equal(one.move, same.move)
    assert not torch.equal(one.frames, another.frames)


def test_the_same_command_goes_on(tmp_path):
    options = ImagesProbe(
        seeds=(0,), kinds=("routing",), updates=2, tests=1, batch=4, dim=8, out=tmp_path, quiet=True
    )
    run(options, "command")
    (before,) = (tmp_path / "probes.jsonl").read_text().splitlines()
    table = run(
        ImagesProbe(seeds=(0,), updates=2, tests=1, batch=4, dim=8, out=tmp_path, quiet=True), "command"
    ).read_text()
    rows = [json.loads(line) for line in (tmp_path / "probes.jsonl").read_text().splitlines()]
    assert rows[0] == json.loads(before)
    assert [row["kind"] for row in rows] == ["routing", "convolution"]
    assert "| routing | " in table


def test_a_probe_answers_both_questions():
    colour, move = ImageProbe("routing", 16)(torch.zeros(2, 99, 99, 6, dtype=torch.uint8))
    assert colour.shape == (2, 19)
    assert move.shape == (2, len(MOVES))
