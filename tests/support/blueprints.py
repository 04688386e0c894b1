"""The subgraph blueprints in subgraphs/: one node for a chain of references with MIP Apply.

They are generated here, so that those for two, three and four objects stay alike. The files are ASCII only, because
ComfyUI opens them in the platform's encoding.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from .paths import ROOT

FOLDER = ROOT / "subgraphs"
COUNTS = (2, 3, 4)
INSIDE, OUTSIDE = -10, -20  # ComfyUI's ids of a subgraph's input and output node
DESCRIPTION = (
    "Every object takes its looks from its own picture. Connect the pictures, write each object's name, and use the "
    "same names in the prompt. More objects: connect a chain of MIP Reference nodes to “references”."
)
ALIASES = ("multi", "reference", "subject", "character", "face", "style", "image prompt", "ip adapter", "ipadapter")
# The blueprint's own widgets with their initial values. All other widgets of the inner nodes keep their defaults.
WIDGETS = {"text": "", "scale": 0.75, "weight": 1.0, "start_percent": 0.0, "end_percent": 1.0}


class Slots(NamedTuple):
    """The slots of a node as the frontend lays them out: sockets first, then widgets, both in the schema's order."""

    sockets: list[tuple[str, str]]
    widgets: list[tuple[str, str, Any]]  # name, type, default
    outputs: list[tuple[str, str]]

    @classmethod
    def of(cls, schema: Any, widget: type) -> Slots:
        """The slots of a node's schema. widget: the class of inputs that are widgets."""
        shown = [each for each in schema.inputs if isinstance(each, widget) and not each.force_input]
        widgets = [(each.id, each.get_io_type(), each.default) for each in shown]
        names = [each[0] for each in widgets]
        sockets = [(each.id, each.get_io_type()) for each in schema.inputs if each.id not in names]
        outputs = [(each.display_name or each.get_io_type(), each.get_io_type()) for each in schema.outputs]
        return cls(sockets, widgets, outputs)


def name(count: int) -> str:
    """The blueprint's name for so many objects."""
    return f"Personalise with {count} objects"


def blueprint(count: int, kinds: dict[str, Slots]) -> dict[str, Any]:
    """A workflow with one subgraph node, which is how ComfyUI serves blueprints."""
    inner = Inner(count, kinds)
    kind = inner.uuid("definition")
    size = [320, 40 + 20 * len(inner.inputs) + 8 * len(inner.widgets())]
    node = {
        "id": 1, "type": kind, "pos": [0, 0], "size": size, "flags": {}, "order": 0, "mode": 0, "title": name(count),
        "inputs": [
            {"name": each["name"], "type": each["type"], "link": None}
            | ({"widget": {"name": each["name"]}} if each["name"] in inner.widgets() else {})
            for each in inner.inputs
        ],
        "outputs": [{"name": each["name"], "type": each["type"], "links": []} for each in inner.outputs],
        "properties": {"proxyWidgets": [["-1", each] for each in inner.widgets()]},
        "widgets_values": [*inner.widgets().values()],
    }  # fmt: skip
    return {
        "id": inner.uuid("workflow"), "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node],
        "links": [], "groups": [], "definitions": {"subgraphs": [inner.definition(kind)]}, "config": {},
        "extra": {"BlueprintDescription": DESCRIPTION, "BlueprintSearchAliases": list(ALIASES)}, "version": 0.4,
    }  # fmt: skip


class Inner:
    """The inside of the subgraph: references one below the other, with MIP Apply beside them."""

    def __init__(self, count: int, kinds: dict[str, Slots]) -> None:
        self.count, self.kinds = count, kinds
        self.links: list[dict] = []
        self.inputs: list[dict] = []
        self.outputs: list[dict] = []
        apply = count + 1
        self.nodes = [self.node(i + 1, "MIPReference", [0, 340 * i], [300, 290]) for i in range(count)]
        self.nodes.append(self.node(apply, "MIPApply", [380, 0], [320, 400]))
        for each in ("model", "clip", "clip_vision", "adapter"):
            self.take(each, apply, each)
        for i in range(count):
            self.take(f"picture {i + 1}", i + 1, "image")
        self.take("references", 1, "references")
        self.take("merge", apply, "merge")
        for i in range(count):
            self.take(f"text {i + 1}", i + 1, "text")
        self.take("scale", apply, "scale")
        for entry in ("image_mask", "region"):  # from here on, inputs stay in the order in which they were added
            for i in range(count):
                self.take(f"{entry} {i + 1}", i + 1, entry)
        for each in ("fusion_head", "frozen"):
            self.take(each, apply, each)
        for i in range(count):
            self.take(f"weight {i + 1}", i + 1, "weight")
        for each in ("start_percent", "end_percent"):
            self.take(each, apply, each)
        for i in range(1, count + 1):
            self.link(i, 0, i + 1, "references")
        for slot, each in enumerate(("model", "relevance")):
            number = self.link(apply, slot, OUTSIDE, slot)
            self.outputs.append(self.end("output", each, self.nodes[-1]["outputs"][slot]["type"], number))

    def uuid(self, what: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mip-adapter/blueprint/{self.count}/{what}"))

    def node(self, number: int, kind: str, pos: list[int], size: list[int]) -> dict[str, Any]:
        sockets, widgets, outputs = self.kinds[kind]
        return {
            "id": number, "type": kind, "pos": pos, "size": size, "flags": {}, "order": number - 1, "mode": 0,
            "inputs": [{"name": each, "type": socket, "link": None} for each, socket in sockets]
            + [{"name": each, "type": socket, "widget": {"name": each}, "link": None} for each, socket, _ in widgets],
            "outputs": [{"name": each, "type": socket, "links": []} for each, socket in outputs],
            "properties": {"cnr_id": "mip-adapter", "ver": "0.1.0", "Node name for S&R": kind},
            "widgets_values": [default for *_, default in widgets],
        }  # fmt: skip

    def end(self, side: str, called: str, socket: str, link: int) -> dict[str, Any]:
        return {"id": self.uuid(f"{side} {called}"), "name": called, "type": socket, "linkIds": [link]}

    def take(self, called: str, node: int, entry: str) -> None:
        """Add an input to the subgraph, linked to a node's input."""
        number = self.link(INSIDE, len(self.inputs), node, entry)
        self.inputs.append(self.end("input", called, self.links[-1]["type"], number))

    def link(self, source: int, out: int, target: int, entry: str | int) -> int:
        """Link an output to an input. Returns the link's number."""
        number = len(self.links) + 1
        slot, socket = entry, ""
        if target != OUTSIDE:
            inputs = self.nodes[target - 1]["inputs"]
            slot = next(i for i, each in enumerate(inputs) if each["name"] == entry)
            inputs[slot]["link"], socket = number, inputs[slot]["type"]
        if source != INSIDE:
            output = self.nodes[source - 1]["outputs"][out]
            output["links"].append(number)
            socket = output["type"]
        self.links.append(
            {"id": number, "origin_id": source, "origin_slot": out, "target_id": target, "target_slot": slot,
             "type": socket}
        )  # fmt: skip
        return number

    def widgets(self) -> dict[str, Any]:
        """The subgraph's inputs that are widgets, with their values."""
        return {each["name"]: WIDGETS[each["name"].split()[0]] for each in self.inputs
                if each["name"].split()[0] in WIDGETS}  # fmt: skip

    def definition(self, kind: str) -> dict[str, Any]:
        height = 40 + 20 * len(self.inputs)
        state = {"lastGroupId": 0, "lastNodeId": len(self.nodes), "lastLinkId": len(self.links), "lastRerouteId": 0}
        return {
            "category": "MIP-Adapter", "description": DESCRIPTION,
            "id": kind, "version": 1, "state": state, "revision": 0, "config": {}, "name": name(self.count),
            "inputNode": {"id": INSIDE, "bounding": [-240, 0, 120, height]},
            "outputNode": {"id": OUTSIDE, "bounding": [780, 0, 120, 80]},
            "inputs": self.inputs, "outputs": self.outputs, "widgets": [], "nodes": self.nodes, "groups": [],
            "links": self.links, "extra": {},
        }  # fmt: skip


def texts(kinds: dict[str, Slots]) -> dict[Path, str]:
    """The expected content of each file."""
    return {
        FOLDER / f"{name(count)}.json": json.dumps(blueprint(count, kinds), indent=1, ensure_ascii=True) + "\n"
        for count in COUNTS
    }
