"""Several objects in one node: names and pictures go in pairs, and make the chain that single nodes make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..support.graphs import photo, references
from ..support.newer import absent
from ..support.sentences import told

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def node(host) -> Any:
    if "MIPSeveralReferences" in absent():
        pytest.skip("the inputs of this host do not grow")
    from mip_adapter.nodes.several import MIPSeveralReferences

    return MIPSeveralReferences


def pictures(*numbers: int) -> dict[str, torch.Tensor]:
    """As the host gives them: by socket, without those to which nothing is connected."""
    return {f"picture {number}": photo(number) for number in numbers}


def test_it_is_the_chain_of_single_nodes(node) -> None:
    before = references(["dog"], image=[photo(7)])
    made = node.execute("cat\n\n  red cup \n", pictures(2, 1), before).args[0]
    chain = references(["dog", "cat", "red cup"], image=[photo(7), photo(1), photo(2)])
    assert len(made) == 3
    for each, single in zip(made, chain, strict=True):
        assert torch.equal(each.images, single.images)
        assert {k: v for k, v in vars(each).items() if k != "images"} == {
            k: v for k, v in vars(single).items() if k != "images"
        }


@pytest.mark.parametrize("names", ["cat, cup", "cat;cup", "cat\r\ncup"])
def test_names_are_separated_as_in_other_nodes(node, names: str) -> None:
    assert [each.text for each in node.execute(names, pictures(1, 2)).args[0]] == ["cat", "cup"]


def test_what_goes_in_no_pair_is_told(node) -> None:
    told(lambda: node.execute("cat", pictures(1, 2)), "“picture 2” has no name; names written: 1.")
    told(lambda: node.execute("cat\ncup\nhat", pictures(1, 3)), "“cup”, name 2, has no picture", "“picture 2”")
    told(lambda: node.execute("cat"), "“cat”, name 1, has no picture")
    told(lambda: node.execute(" \n", pictures(1)), "No object is named")
    told(lambda: node.execute("cat\n" * 10 + "cup", pictures(*range(1, 12)), references(["x"] * 6)), "at most 16")


def test_names_are_checked_before_anything_runs(node) -> None:
    """The host then gives the sockets that are connected, without pictures."""
    two = {"picture 1": None, "picture 2": None}
    assert node.validate_inputs("cat\ncup", two) is True and node.validate_inputs(None, two) is True
    assert "No object is named" in node.validate_inputs("", two)
    assert "“cup”, name 2, has no picture" in node.validate_inputs("cat\ncup", {"picture 1": None})
    assert "“picture 2” has no name" in node.validate_inputs("cat", two)
    assert "at most 300 are accepted" in node.validate_inputs("cat\n" + "a" * 400, two)


def test_every_socket_is_checked(node) -> None:
    told(lambda: node.execute("cat", {"picture 1": None}), "“picture 1” of MIP Several References got nothing")
    told(lambda: node.execute("cat", {"picture 1": photo(1) * 255}), "“picture 1”", "Divide by 255")
    told(lambda: node.execute("cat", pictures={"picture 1": "a.png"}), "picture 1", "expected IMAGE")
    told(lambda: node.execute("cat", pictures="a.png"), "pictures", "connect one there")
