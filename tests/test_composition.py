"""What a guest image's pages hold: parts exact, equal in every VM of the image, at every scale."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from host_builders import (
    SECOND,
    counter,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
    run_until_booted,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hostsim.composition import (
    _spread,
    class_base,
    class_slots,
    compose,
    copies_phase,
    range_lengths,
)
from hostsim.guest_config import ContentMix, ContentTable, GuestImage
from hostsim.host import Host
from hostsim.state import IN_FOOTPRINT, IN_GROWTH, IN_KERNEL, PATTERN, UNIQUE, USE_SHIFT, Array
from hostsim.units import MIB, PAGE_SIZE

USES = ("free", "cache", "anon", "kernel")
CLASSES = ("zero", "image", "application", "duplicate", "unique")
CONTENT = ContentTable(
    kernel=ContentMix(image=60, unique=40),
    cache=ContentMix(image=150, application=100, unique=50),
    anon=ContentMix(zero=50, image=20, duplicate=130, unique=300),
    free=ContentMix(zero=70, unique=30),
)


@st.composite
def tables(draw: st.DrawFn, uses: tuple[str, ...] = USES) -> ContentTable:
    """Tables with a few large and many small entries, which are the hard ones to spread."""
    cells = [(use, content) for use in uses for content in CLASSES]
    weights = draw(st.lists(st.sampled_from([0, 0, 1, 2, 7, 90]), min_size=20, max_size=20))
    weights = weights[: len(cells)]
    biggest = draw(st.integers(0, len(cells) - 1))
    while sum(weights) > 1000:
        weights[weights.index(max(weights))] = 0
    weights[biggest] += 1000 - sum(weights)
    mixes: dict[str, dict[str, int]] = {use: {} for use in uses}
    for (use, content), weight in zip(cells, weights, strict=True):
        mixes[use][content] = weight
    return ContentTable(**{use: ContentMix(**mix) for use, mix in mixes.items()})


def weights_of(table: ContentTable, uses: tuple[str, ...]) -> dict[int, int]:
    """Permille of each kind (use * 8 + class) of some uses."""
    return {
        USES.index(use) * 8 + content: getattr(getattr(table, use), name)
        for use in uses
        for content, name in enumerate(CLASSES)
    }


def permille_of(table: ContentTable) -> dict[tuple[str, str], int]:
    """Entries of a table that are not empty."""
    entries = {(use, name): getattr(getattr(table, use), name) for use in USES for name in CLASSES}
    return {kind: permille for kind, permille in entries.items() if permille}


def kinds_of(host: Host, vm: int) -> Counter[tuple[str, str]]:
    """Pages in memory by guest use and class of content, from the content words."""
    row = row_of(host, vm)
    cut = np.s_[row.base_slot : row.base_slot + row.size_slots]
    pages, words = host.state.page[cut], host.state.content[cut].astype(np.int64)
    lengths = [at.length for at in host.ranges.values()]
    bases = [at.base for at in host.ranges.values()]
    kinds = [key.kind for key in host.ranges]
    found: Counter[tuple[str, str]] = Counter()
    for page, word in zip(pages.tolist(), words.tolist(), strict=True):
        if page & 7 == 0:
            continue
        name = "unique"
        if not word & int(UNIQUE):
            at = next(i for i, b in enumerate(bases) if b <= word < b + lengths[i])
            name = CLASSES[kinds[at]]
        found[USES[page >> int(USE_SHIFT)], name] += 1
    return found


def booted(*images: GuestImage, size: int = 16 * MIB, sample: int = 1, app: int = 7) -> Host:
    """A VM of each image; equal images are one family."""
    host = make_host(256 * MIB, sample=sample)
    families = list(dict.fromkeys(images))
    for vm, image in enumerate(images, start=1):
        family = 1 + families.index(image)
        spec = make_spec(vm, size, image=image, image_range=family, application_range=app)
        power_on(host, spec)
    run_until_booted(host)
    return host


def words_of(host: Host, vm: int) -> Array:
    row = row_of(host, vm)
    return host.state.content[row.base_slot : row.base_slot + row.size_slots].astype(np.int64)


# The pattern


@settings(max_examples=60)
@given(content=tables(), growth=tables(uses=("cache", "anon", "free")))
def test_any_length_has_the_floor_or_the_ceiling_of_each_part(
    content: ContentTable, growth: ContentTable
) -> None:
    composition = compose(GuestImage(content=content, growth=growth))
    sections = [(content, ("kernel",)), (content, USES[:3]), (growth, USES[:3])]
    for section, (table, uses) in enumerate(sections):
        weights = weights_of(table, uses)
        total = sum(weights.values())
        if total == 0:
            continue
        lengths = np.arange(1, 2500)
        period = int(composition.periods[section])
        kinds = np.resize(composition.kinds[section, :period], len(lengths))
        for kind, weight in weights.items():
            counts = np.cumsum(kinds == kind)
            assert (counts >= weight * lengths // total).all()
            assert (counts <= -(-weight * lengths // total)).all()


@settings(max_examples=30)
@given(content=tables(), n_slots=st.integers(0, 5000))
def test_counts_of_classes_are_those_of_the_pattern_repeated(
    content: ContentTable, n_slots: int
) -> None:
    composition = compose(GuestImage(content=content))
    for section in (IN_KERNEL, IN_FOOTPRINT, IN_GROWTH):
        period = int(composition.periods[section])
        classes = np.resize(composition.kinds[section, :period], n_slots) % 8
        counted = np.bincount(classes, minlength=6)
        assert class_slots(composition, section, n_slots).tolist() == counted.tolist()


@pytest.mark.slow
def test_miniatures_hold_in_the_mean_over_seeds_what_is_due() -> None:
    """40 slots of each section at 1 in 64: each class within 3.5 standard errors of its exact part
    over 200 seeds, and within two slots of it for every one. Without seeds rare classes are always
    there or never."""
    image = GuestImage(content=CONTENT)
    drawn = [compose(image, seed, 64) for seed in range(200)]
    for section, n in ((IN_KERNEL, 40), (IN_FOOTPRINT, 40), (IN_GROWTH, 40)):
        exact = compose(image)
        due = n * exact.class_counts[section] / exact.periods[section]
        found = np.array([class_slots(one, section, n) for one in drawn])
        assert np.abs(found - due).max() <= 2
        error = found.std(axis=0, ddof=1) / np.sqrt(len(drawn))
        assert (np.abs(found.mean(axis=0) - due) <= 3.5 * error + 1e-9).all()
    assert (compose(image, 5, 1).kinds == compose(image).kinds).all()


def test_a_rare_class_is_as_rare_in_a_long_section() -> None:
    """12 % kernel, 1 permille zeroes: 1 of 880 slots beside the kernel, 74.5 of 65 536. A pattern
    that repeats after 1000 slots, whose parts there are not whole, has 66."""
    content = ContentTable(
        kernel=ContentMix(unique=120), cache=ContentMix(zero=1), anon=ContentMix(unique=879)
    )
    composition = compose(GuestImage(content=content))
    assert composition.periods.tolist() == [120, 880, 1000]
    assert class_slots(composition, IN_FOOTPRINT, 65_536)[0] in (74, 75)
    host = make_host(512 * MIB)
    power_on(host, make_spec(1, 256 * MIB, image=make_image(256 * MIB, content=content)))
    run_until_booted(host)
    found = kinds_of(host, 1)
    assert found["kernel", "unique"] == 65_536 * 120 // 1000 == 7864
    assert found["cache", "zero"] == pytest.approx((65_536 - 7864) / 880, abs=1)


def test_later_sections_go_on_counting_where_earlier_ones_end() -> None:
    composition = compose(GuestImage(content=CONTENT))
    base = class_base(composition, 100, 1000)
    assert base[IN_KERNEL].tolist() == [0] * 6
    assert base[IN_FOOTPRINT].tolist() == [0, 60, 0, 0, 40, 0]
    assert base[IN_GROWTH].tolist() == [120, 230, 100, 130, 420, 0]


def test_ranges_hold_one_content_per_image_slot_and_one_per_set_of_duplicates() -> None:
    composition = compose(GuestImage(content=CONTENT, copies=2.5))
    lengths = range_lengths(composition, 100, 1000, 1500, pool=0)
    assert lengths[[1, 2]].tolist() == [230, 100]
    assert lengths[3] == 130 * 2 // 5 + 1


# In a VM


def test_a_booted_guest_holds_exactly_what_its_image_states() -> None:
    host = booted(make_image(1000 * PAGE_SIZE, content=CONTENT))
    assert kinds_of(host, 1) == permille_of(CONTENT)


def test_the_same_slots_hold_the_same_image_contents_in_every_vm_of_a_family() -> None:
    image = make_image(1000 * PAGE_SIZE, content=CONTENT)
    host = booted(image, image)
    power_on(host, make_spec(3, 12 * MIB, image=image, image_range=1, application_range=7))
    run_until_booted(host)
    first, second, third = (words_of(host, vm)[:1000] for vm in (1, 2, 3))
    row = row_of(host, 1)
    common = [(row.image_base, 230), (row.app_base, 100), (row.zero, 1)]
    for base, length in common:
        held = (first >= base) & (first < base + length)
        assert held.sum() == (length if length > 1 else 120)
        assert (first[held] == second[held]).all()
        assert (first[held] == third[held]).all()
        if length > 1:
            assert sorted(first[held]) == list(range(base, base + length))


def test_images_have_nothing_in_common_but_zeroes_and_their_application() -> None:
    one = make_image(1000 * PAGE_SIZE, content=CONTENT, application="app")
    other = make_image(1000 * PAGE_SIZE, content=CONTENT, application="app", copies=3.0)
    host = booted(one, other)
    both = set(words_of(host, 1)[:1000]) & set(words_of(host, 2)[:1000])
    row = row_of(host, 1)
    assert {word for word in both if not word & int(UNIQUE)} == {
        int(row.zero),
        *range(row.app_base, row.app_base + 100),
    }


def test_without_a_group_application_contents_are_the_images_own() -> None:
    one = make_image(1000 * PAGE_SIZE, content=CONTENT)
    other = make_image(1000 * PAGE_SIZE, content=CONTENT, copies=3.0)
    host = booted(one, other, one, app=0)
    rows = [row_of(host, vm) for vm in (1, 2, 3)]
    assert rows[0].app_base == rows[2].app_base != rows[1].app_base


@pytest.mark.parametrize("copies", [2.0, 2.5, 3.0, 4.75])
def test_duplicates_have_the_stated_mean_of_copies_inside_one_vm(copies: float) -> None:
    content = ContentTable(anon=ContentMix(duplicate=500, unique=500))
    image = make_image(3800 * PAGE_SIZE, content=content, copies=copies)
    host = booted(image, image)
    n = [Counter(words_of(host, vm)[words_of(host, vm) & UNIQUE == 0].tolist()) for vm in (1, 2)]
    del n[0][int(row_of(host, 1).zero)], n[1][int(row_of(host, 2).zero)]
    assert not set(n[0]) & set(n[1])
    for counts in n:
        assert counts.total() == 1900
        assert len(counts) == -(-1900 // copies)
        whole = [count for word, count in counts.items() if word != max(counts)]
        assert set(whole) <= {int(copies), int(np.ceil(copies))}


@pytest.mark.parametrize("copies", [1.0, 2.0, 2.5, 10.2])
@pytest.mark.parametrize("n", [1, 3, 7, 40])
def test_a_samples_duplicates_hold_the_contents_due_in_the_mean(copies: float, n: int) -> None:
    """n / copies, over seeds: no VM's last group counts for more than it is. 2000 seeds; the
    number of contents is one of two whole numbers, so its standard error is 0.012 at most."""
    permille = int(1000 * copies)
    last = [1000 * (n - 1) + copies_phase(seed, permille) for seed in range(2000)]
    held = [at // permille + 1 for at in last]
    assert len(set(held)) <= 2
    assert np.mean(held) == pytest.approx(n / copies, abs=0.05)


# Miniature simulation


@pytest.mark.parametrize("sample", [1, 16, 64])
def test_a_sample_keeps_fixed_counts_of_each_class(sample: int) -> None:
    """As near to pages / k as whole slots are, in each repetition of the pattern, at its beginning
    and at its end; in every VM."""
    image = make_image(12_000 * PAGE_SIZE, content=CONTENT)
    host = booted(image, image, size=64 * MIB, sample=sample)
    first, second = kinds_of(host, 1), kinds_of(host, 2)
    assert first == second
    assert first.total() == 12_000 // sample or sample == 64
    repetitions = 1 + 12_000 / sample / PATTERN
    for kind, permille in permille_of(CONTENT).items():
        assert abs(first[kind] - 12 * permille / sample) < 1 + repetitions


@pytest.mark.parametrize("seed", [1, 2])
def test_a_miniature_shares_what_the_whole_host_shares(seed: int) -> None:
    """k = 16 against every page: four busy guests, half way through their first scan and after it.

    Half way a binomial of some 1064 slots at 0.65 says 680 with sd 16: 5 % is two of them. Once
    all pages are seen, counts per class are fixed and 1 % (10 slots) is left for the writes.
    """
    saved = {}
    content = CONTENT.model_copy(update={"anon": ContentMix(zero=150, image=150, unique=200)})
    image = make_image(32 * MIB, content=content)
    for sample in (1, 16):
        rates = {"scan_pages_per_s_vm": 100, "scan_pages_per_s_total": 400}
        host = make_host(256 * MIB, sample=sample, seed=seed, sharing={"enabled": True} | rates)
        busy = make_phase(active=4 * MIB, touch_interval=20 * SECOND, drift=500)
        power_on(host, *(make_spec(vm, 48 * MIB, busy, image=image) for vm in range(4)))
        run(host, 100 * SECOND)
        half_way = host.measure()[0]["shared_saved_pages"][0]
        run(host, 600 * SECOND)
        saved[sample] = [half_way, host.measure()[0]["shared_saved_pages"][0]]
        assert counter(host, "sample") == sample
    assert saved[1][0] < 0.8 * saved[1][1]
    assert saved[16][0] == pytest.approx(saved[1][0], rel=0.05)
    assert saved[16][1] == pytest.approx(saved[1][1], rel=0.01)


def spread_slot_by_slot(entries: list[tuple[int, int]]) -> Array:
    """The rule of `_spread` on all slots and entries, one after the other."""
    kinds, weights = np.array(entries, np.int64).T
    total = weights.sum()
    given = np.zeros_like(weights)
    pattern = np.zeros(PATTERN, np.int64)
    for slot in range(PATTERN):
        may_come = given * total // weights <= slot
        must_come = -(-(given + 1) * total // weights)
        entry = int(np.argmin(np.where(may_come, must_come, PATTERN * total)))
        given[entry] += 1
        pattern[slot] = kinds[entry]
    return pattern


@settings(max_examples=20)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=8))
def test_a_pattern_repeats_where_its_parts_are_whole(weights: list[int]) -> None:
    """Laying out that many slots and repeating them is as good as laying out all."""
    entries = list(enumerate(weights))
    assert _spread(entries).tolist() == spread_slot_by_slot(entries).tolist()
