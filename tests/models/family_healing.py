"""One step of healing on a tiny model of any family: what the whole model says is learned by the pruned one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from family_inputs import Batch

from striate.artifacts import Region
from striate.config import HealSection
from striate.data.samples import Message, Sample
from striate.healing.objective import HealingObjective
from striate.healing.teacher_pass import likeliest
from striate.healing.teacher_rows import COUNTS, IDS, LOG_PROBS, STATES, TeacherRows, part_name
from striate.models.interventions.selected_logits import answer_outputs
from striate.models.structure.anatomy import find_anatomy, layer_of
from striate.models.trainable.apply import apply_region, chosen_parameters
from striate.training.batching.label_positions import ANSWERS, label_positions

K = 8
SAMPLE = Sample("all rows", (Message("user", "?"), Message("assistant", "!")))


def heal_one_step(whole: Any, small: Any, batch: Batch) -> None:
    """Assert that one step towards `whole` moves exactly a region of a copy of `small`, and that the loss falls."""
    twin = copy.deepcopy(small)
    depth = find_anatomy(twin).num_layers
    layers = (0, depth // 2, depth - 1)
    own = Region(layers=layers, num_layers=depth, spec=f"ids:{','.join(map(str, layers))}")
    apply_region(twin, own)
    answers = label_positions(batch["labels"])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        logits_NV, states_ND = answer_outputs(whole, inputs, answers[0], answers[1])
    parts = dict(zip((LOG_PROBS, IDS), likeliest(logits_NV.float(), K), strict=True))
    section = HealSection(steps=1, hidden=0.0 if states_ND is None else 1.0)
    parts |= {} if states_ND is None else {STATES: states_ND}
    stored = {part_name(0, part): rows for part, rows in parts.items()}
    teacher = TeacherRows([SAMPLE], {**stored, COUNTS: torch.tensor([len(logits_NV)])})
    objective = HealingObjective(section, teacher)
    served = {**inputs, ANSWERS: answers, **{f"teacher_{part}": rows for part, rows in parts.items()}}

    def loss() -> torch.Tensor:
        with objective.serving(served, served) as ready:
            return objective.loss(twin, ready)

    before = {name: tensor.detach().clone() for name, tensor in twin.named_parameters()}
    first = loss()
    assert set(objective.take_parts()) == {"ce", "kl"} | ({"hidden"} if section.hidden else set())
    first.backward()
    trained = [tensor for tensor in twin.parameters() if tensor.requires_grad]
    size = float(torch.stack([tensor.grad.norm() for tensor in trained if tensor.grad is not None]).norm())
    torch.optim.SGD(trained, lr=1e-3 / max(size, 1.0)).step()
    moved = {name for name, tensor in twin.named_parameters() if not torch.equal(before[name], tensor)}
    assert moved <= chosen_parameters(twin, own), f"{sorted(moved - chosen_parameters(twin, own))} moved"
    anatomy = find_anatomy(twin)
    assert {layer_of(anatomy, name) for name in moved} - {None} == set(own.layers)
    after = float(loss().detach())
    assert after < float(first.detach()), f"the loss went from {float(first.detach()):.6g} to {after:.6g}"
