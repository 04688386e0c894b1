"""Several objects at once: a picture for each, and their names one a line."""

from comfy_api.latest import io

from ..attention.reference import MAX_OBJECTS, check_chain, make_references, paired
from .types import CATEGORY, SEARCH_WORDS, MIPReferences, searched_as
from .validation import valid_or_message

SLOTS = tuple(f"picture {number}" for number in range(1, MAX_OBJECTS + 1))


class MIPSeveralReferences(io.ComfyNode):
    """Only on hosts whose inputs grow (`io.Autogrow`). Older ones would show all sixteen of them at once; there a chain
    of MIPReference does the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPSeveralReferences",
            display_name="MIP Several References",
            category=CATEGORY,
            **searched_as(*SEARCH_WORDS, "references", "multiple references"),
            description="Several objects in one node: connect a picture of each and write their names, one a line, in "
            "the same order. It is the same as a chain of MIP Reference with their defaults.",
            inputs=[
                io.Autogrow.Input(
                    "pictures",
                    template=io.Autogrow.TemplateNames(io.Image.Input("picture"), names=[*SLOTS], min=1),
                    tooltip="A picture of each object, any size; the middle square is used. Another input appears when "
                    "the last one is connected. A batch is several pictures of the same object.",
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    placeholder="name of the object in picture 1\nname of the object in picture 2",
                    tooltip="The objects' names as they stand in the prompt, one a line, in the pictures' order: one "
                    "or two words each, “cat”, “red jacket”.",
                ),
                MIPReferences.Input(
                    "references",
                    optional=True,
                    tooltip="The references so far, objects and styles; these are appended. An object that needs a "
                    "mask, a region or a weight has a MIP Reference of its own.",
                ),
            ],
            outputs=[
                MIPReferences.Output(
                    display_name="references",
                    tooltip="The chain with these objects at its end: for MIP Reference, or for MIP Apply.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, names: str | None = None, pictures: dict | None = None) -> bool | str:
        return valid_or_message(lambda given: paired(given, _numbered(pictures)), names)

    @classmethod
    def execute(cls, names, pictures=None, references=()) -> io.NodeOutput:
        chain = (*(references or ()), *make_references(names, _numbered(pictures)))
        check_chain(chain)
        return io.NodeOutput(chain)


def _numbered(pictures: dict | None) -> dict:
    """What is connected, by number from 1; None stands for nothing. Before a run the host gives None for each."""
    return {SLOTS.index(slot) + 1: picture for slot, picture in (pictures or {}).items()}
