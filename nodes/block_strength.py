"""In which blocks of the UNet a reference speaks."""

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..attention.block_strength import ALL, PRESETS, make_block_strength
from ..attention.ease import EASES, STEADY
from ..common.bars import draw_bars
from ..weights.sites import model_sites
from .types import CATEGORY, MIPBlockStrengths, searched_as


class MIPBlockStrength(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPBlockStrength",
            display_name="MIP Block Strength",
            category=CATEGORY,
            **searched_as("weight type", "layer weights", "block weight", "分块"),
            description="In which blocks of the model a reference speaks, and how strongly: some blocks carry the "
            "style, others the layout. For a MIP Reference; without it a reference speaks in all blocks alike.",
            inputs=[
                io.Model.Input("model", tooltip="The same as for MIP Apply: its blocks are the ones that count."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=ALL,
                    tooltip="What the reference gives: style, strong style (all but composition), composition (the "
                    "layout), subject. For the blocks of SDXL and SD1.5. The other blocks are silent and cost nothing.",
                ),
                io.String.Input(
                    "numbers",
                    default="",
                    placeholder="1 1 0 0.5 …",
                    optional=True,
                    tooltip="In place of the preset: a strength for each block, as the bars show them from left to "
                    "right; or pairs such as 3:1, 6:0.5, as IPAdapter_plus writes layer_weights. 0: silent.",
                ),
                io.Combo.Input(
                    "over_time",
                    options=list(EASES),
                    default=STEADY,
                    optional=True,
                    tooltip="How the strength varies from the reference's start_percent to its end_percent: ease in "
                    "grows from 0, ease out fades to 0, ease in and out is strongest in the middle.",
                ),
            ],
            outputs=[
                MIPBlockStrengths.Output(
                    display_name="block_strength", tooltip="For one MIP Reference, or for several."
                ),
                io.Image.Output(
                    display_name="bars",
                    tooltip="The strength of every block of this model: I input, M middle, O output.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, preset, numbers="", over_time=STEADY) -> io.NodeOutput:
        made = make_block_strength(model_sites(model.model.diffusion_model), preset, numbers, over_time)
        labels = {f"{place[0].upper()}{number}": s for (place, number), s in made.strengths.items()}
        picture = np.asarray(draw_bars(f"Strength by block: {made.name}", labels), np.float32) / 255
        bars = torch.from_numpy(picture).unsqueeze(0)
        return io.NodeOutput(made, bars, ui=ui.PreviewImage(bars, cls=cls))
