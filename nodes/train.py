"""Training of an adapter or its fusion head, and saving of the result."""

from comfy_api.latest import io, ui

from ..attention.options import one_of
from ..common.text import brief
from ..training.comfy_session import dataset_path, save_in_host, train_session
from ..training.config import Precision, TrainConfig, Trained
from .types import CATEGORY, MIPAdapter, searched_as
from .validation import valid_or_message

TRAINING = f"{CATEGORY}/training"
PARTS = ("adapter", "head only")  # what is saved of an adapter
TRAINED: dict[str, Trained] = {
    "adapter and head": "adapter",
    "head only": "head",
    "adapter, head and projection": "all",
}


class MIPTrainAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPTrainAdapter",
            display_name="Train MIP Adapter",
            category=TRAINING,
            **searched_as("train ip adapter", "fine-tune", "训练"),
            description="Trains an adapter, or its fusion head alone, for the model at hand on pictures with several "
            "objects, by the paper's recipe. Interrupt it at any time: the same settings go on where it was.",
            inputs=[
                io.Model.Input("model", tooltip="Stays as it is. LoRAs act while training."),
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder that the adapter was made for."),
                MIPAdapter.Input(
                    "adapter",
                    tooltip="Where training starts. Plain IP-Adapter weights get a fusion head, which begins with "
                    "small random weights.",
                ),
                io.String.Input(
                    "dataset_folder",
                    default="",
                    placeholder="folder with images/, masks/, jsons/",
                    tooltip="Training pictures in the layout of subject_dataset_10k, or a list that mip.py curate "
                    "made: a whole path, or a name below ComfyUI's input folder.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=1_000_000,
                    tooltip="The paper made 12,000 with 32 pictures each. A head alone learns in a few hundred. Raise "
                    "it afterwards to train on.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-7,
                    max=0.1,
                    step=1e-6,
                    round=False,
                    tooltip="The paper's 0.0001 suits the adapter; a head alone takes 0.001. Lower it when the loss "
                    "jumps.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="Pictures in memory at once; 4 in the paper. Short of memory: 1, and raise "
                    "gradient_accumulation.",
                ),
                io.Combo.Input(
                    "train",
                    options=list(TRAINED),
                    default="adapter and head",
                    tooltip="adapter and head: keys, values and the fusion head (the paper). head only: the small "
                    "gate, quick, little memory, a file of 170 KB for SDXL. With projection: also what turns pictures "
                    "into tokens.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Decides order, crops and noise; another seed is another training.",
                ),
                io.Int.Input(
                    "gradient_accumulation",
                    default=1,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip="Batches per step: a step learns from batch_size × gradient_accumulation pictures, in the "
                    "memory of one batch.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                    optional=True,
                    tooltip="Side of the training pictures; 512 in the paper, also for SDXL. 1024 takes four times as "
                    "long.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "bf16", "fp16", "fp32"],
                    default="auto",
                    optional=True,
                    tooltip="Of the frozen model's computations. auto: bf16 where the card has it, fp16 on older "
                    "cards, fp32 on the CPU. The trained weights are always fp32.",
                ),
                io.Float.Input(
                    "ema",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    round=False,
                    optional=True,
                    tooltip="Returns a moving average of the weights with this decay: steadier results of short "
                    "trainings, try 0.99. 0: off (the paper).",
                ),
                io.Float.Input(
                    "min_snr",
                    default=0.0,
                    min=0.0,
                    max=20.0,
                    step=0.5,
                    optional=True,
                    tooltip="Weighs noise levels by min-SNR with this gamma; 5 is customary. 0: off (the paper).",
                ),
                io.Int.Input(
                    "max_objects",
                    default=2,
                    min=2,
                    max=8,
                    optional=True,
                    tooltip="Pictures with more objects use this many of them, the most certain first. The paper: 2.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=True,
                    optional=True,
                    tooltip="Computes parts twice to save most of the memory. Off is faster.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=250,
                    min=0,
                    max=100_000,
                    optional=True,
                    tooltip="Steps between checkpoints in output/mip_adapter_training, for when the power fails. An "
                    "interrupt always leaves one. 0: only at the end.",
                ),
            ],
            outputs=[
                MIPAdapter.Output(display_name="adapter", tooltip="For MIP Apply, and for Save MIP Adapter."),
                io.Image.Output(
                    display_name="loss_curve", tooltip="The losses as a picture: each step, and the running mean."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, dataset_folder=None) -> bool | str:
        return valid_or_message(dataset_path, dataset_folder)

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        clip_vision,
        adapter,
        dataset_folder,
        steps,
        learning_rate,
        batch_size,
        train,
        seed,
        gradient_accumulation=1,
        resolution=512,
        precision: Precision = "auto",
        ema=0.0,
        min_snr=0.0,
        max_objects=2,
        gradient_checkpointing=True,
        checkpoint_every=250,
    ) -> io.NodeOutput:
        if train not in TRAINED:
            raise ValueError(f"train is “{brief(train)}”; choose one of: {', '.join(TRAINED)}.")
        recipe = TrainConfig(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            train=TRAINED[train],
            seed=seed,
            accumulate=gradient_accumulation,
            resolution=resolution,
            precision=precision,
            ema=ema,
            min_snr=min_snr,
            max_objects=max_objects,
            checkpointing=gradient_checkpointing,
            save_every=checkpoint_every,
            workers=0,  # no worker processes: the host has threads and a GPU and must not be forked
        )
        return io.NodeOutput(
            *train_session(model, clip, vae, clip_vision, adapter, dataset_path(dataset_folder), recipe)
        )


class MIPSaveAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPSaveAdapter",
            display_name="Save MIP Adapter",
            category=TRAINING,
            **searched_as("save ip adapter", "export", "保存"),
            description="Saves an adapter, or its fusion head alone, into output/mip_adapter, where Load MIP Adapter "
            "finds it (press R). The recipe and the losses stand in the file's metadata. Nothing is overwritten.",
            inputs=[
                MIPAdapter.Input("adapter", tooltip="The adapter to save: from Train MIP Adapter or Load MIP Adapter."),
                io.String.Input(
                    "filename_prefix",
                    default="mip_adapter/trained",
                    tooltip="Name of the file inside output/mip_adapter, with or without that folder before it; "
                    "subfolders are allowed. A number is added if it is taken.",
                ),
                io.Combo.Input(
                    "part",
                    options=list(PARTS),
                    default="adapter",
                    optional=True,
                    tooltip="head only: the fusion head for MIP Fusion Head's head_name, 170 KB for SDXL, to be shared "
                    "like a LoRA.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, adapter, filename_prefix, part="adapter") -> io.NodeOutput:
        one_of("part", part, PARTS)
        path = save_in_host(adapter, filename_prefix, head_only=part == PARTS[1])
        return io.NodeOutput(ui=ui.PreviewText(f"Saved {path}"))
