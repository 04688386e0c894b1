"""subgraphs/: blueprints that the host offers beside its nodes. tests/browser/ shows how they behave.

After a change of MIPReference or MIPApply:  MIP_ADAPTER_UPDATE=1 python mip.py test tests/house/test_blueprints.py
"""

from __future__ import annotations

import os

from ..support import blueprints
from ..support.loops import complete


def test_they_fit_the_nodes_of_today(host) -> None:
    from comfy_api.latest import io
    from mip_adapter.nodes import extension

    schemas = [node.define_schema() for node in complete(extension().get_node_list())]
    kinds = {schema.node_id: blueprints.Slots.of(schema, io.WidgetInput) for schema in schemas}
    wanted = blueprints.texts(kinds)
    if os.environ.get("MIP_ADAPTER_UPDATE"):
        for path, text in wanted.items():
            path.write_text(text, encoding="ascii")
    assert {path: path.read_text("ascii") for path in blueprints.FOLDER.glob("*.json")} == wanted
