"""The shipped images are what the fingerprints of real guests say, and the host accepts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from data_tools import measure_images

from hostsim.guest_config import GuestImage
from hostsim.units import FILE, MIB

REPO = Path(__file__).parents[1]
IMAGES = REPO / "scenarios" / "images.yaml"
FINGERPRINTS = REPO.parent / "shared" / "data" / "kvm-fingerprints"
NAMES = ["debian-idle", "debian-web", "debian-db", "debian-py", "debian-file"]


def images() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(IMAGES.read_text(encoding="utf-8"))["images"]
    return found


def test_every_image_is_listed_once() -> None:
    assert [image["name"] for image in images()] == NAMES


@pytest.mark.parametrize("image", images(), ids=NAMES)
def test_images_validate_and_their_tables_are_whole(image: dict[str, Any]) -> None:
    values = {key: value for key, value in image.items() if key != "name"}
    model = GuestImage.model_validate(values, context={FILE: True})
    for table in (model.content, model.growth):
        assert sum(sum(mix.model_dump().values()) for _, mix in table) == 1000
    assert 100 * MIB < model.footprint <= 256 * MIB
    assert model.copies >= 2
    # What no peer can show must not name a group: idle guests have no application.
    has_application = any(mix.application for _, mix in (*model.content, *model.growth))
    assert has_application == (model.application is not None)


@pytest.mark.skipif(not FINGERPRINTS.is_dir(), reason="needs ../shared/data/kvm-fingerprints")
def test_images_are_what_the_tool_measures() -> None:
    profiles = measure_images.measure(FINGERPRINTS)
    assert measure_images.to_yaml(profiles) == IMAGES.read_text(encoding="utf-8")


def test_permille_sum_to_the_whole_and_ties_go_to_the_earlier_cell() -> None:
    thirds = measure_images.np.zeros((4, 5))
    thirds[1, :3] = 1
    assert measure_images.to_permille(thirds)[1].tolist() == [334, 333, 333, 0, 0]
