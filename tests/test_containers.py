"""Tensors in containers of every kind, in each other, and in themselves."""

from __future__ import annotations

import collections
import copy
import functools
from collections import deque
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmselfdistill.containers import (
    leaves,
    method_in,
    replaced,
    snapshot,
    tensors_in,
    written,
)


class Named(NamedTuple):
    feature: Any
    size: int = 3


@dataclass
class Features:
    feature: Any
    size: int = 3


@dataclass(frozen=True)
class Frozen:
    feature: Any
    size: int = 3


class Own:
    def __init__(self, feature: Any) -> None:
        self.feature = feature
        self.size = 3


class Slots:
    __slots__ = ('absent', 'feature', 'size')

    def __init__(self, feature: Any) -> None:
        self.feature = feature
        self.size = 3


class ByAttribute(collections.OrderedDict):  # type: ignore[type-arg]
    """As the outputs of transformers: each value is a key and an attribute."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        vars(self).update(values)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        vars(self)[key] = value


def instances(feature: Any) -> InstanceData:
    return InstanceData(metainfo=dict(size=3), feature=feature)


Make = Callable[[Any], Any]
CONTAINERS: dict[str, tuple[Make, Make]] = {
    'dict': (lambda x: {'feature': x, 'size': 3}, lambda c: c['feature']),
    'ordered': (
        lambda x: collections.OrderedDict(feature=x),
        lambda c: c['feature'],
    ),
    'config': (lambda x: ConfigDict(feature=x), lambda c: c['feature']),
    'user dict': (lambda x: collections.UserDict(feature=x), lambda c: c['feature']),
    'list': (lambda x: [3, x], lambda c: c[1]),
    'tuple': (lambda x: (None, x), lambda c: c[1]),
    'named tuple': (Named, lambda c: c.feature),
    'dataclass': (Features, lambda c: c.feature),
    'frozen dataclass': (Frozen, lambda c: c.feature),
    'namespace': (lambda x: SimpleNamespace(feature=x), lambda c: c.feature),
    'own class': (Own, lambda c: c.feature),
    'slots': (Slots, lambda c: c.feature),
    'key and attribute': (lambda x: ByAttribute(feature=x), lambda c: c.feature),
}
OBJECTS = (Features, Frozen, SimpleNamespace, Own, Slots, InstanceData)
OBJECTS = (*OBJECTS, collections.UserDict)


@pytest.mark.parametrize('outer', CONTAINERS)
@pytest.mark.parametrize('inner', CONTAINERS)
def test_a_tensor_is_found_and_replaced_in_any_two(outer: str, inner: str) -> None:
    if (outer, inner) == ('config', 'named tuple'):
        pytest.skip('a config takes named tuples apart itself')
    (make_outer, outer_of), (make_inner, inner_of) = (
        CONTAINERS[outer],
        CONTAINERS[inner],
    )
    tensor, other, new = torch.zeros(2), torch.ones(2), torch.ones(3)
    whole = make_outer(make_inner([tensor, other]))
    assert {id(each) for each in tensors_in(whole)} == {id(tensor), id(other)}

    changed = replaced(whole, {id(tensor): new})
    found = inner_of(outer_of(changed))
    assert type(changed) is type(whole)
    assert type(outer_of(changed)) is type(outer_of(whole))
    assert found[0] is new and found[1] is other
    # what was given is as before
    before = inner_of(outer_of(whole))
    assert before[0] is tensor and before[1] is other
    assert {id(each) for each in tensors_in(changed)} == {id(new), id(other)}

    kept = replaced(whole, {id(new): tensor})
    assert inner_of(outer_of(kept))[0] is tensor
    if isinstance(whole, OBJECTS):
        assert kept is whole


def test_the_data_elements_of_mmengine_are_objects() -> None:
    tensor, new = torch.zeros(2), torch.ones(2)
    data = instances(tensor)
    ((path, whole), (inner, found)) = leaves([data])
    assert (path, inner) == ((0,), (0, 'feature'))
    assert whole is data and found is tensor
    (changed,) = replaced([data], {id(tensor): new})
    assert type(changed) is InstanceData
    assert changed.feature is new and data.feature is tensor
    assert (changed.size, len(changed)) == (3, 2)
    assert changed.keys() == ['feature'] and changed.metainfo_keys() == ['size']
    # it may be replaced as a whole, without a look into it
    other = instances(new)
    versions = {id(data): other, id(tensor): torch.ones(5)}
    assert replaced((data,), versions)[0] is other


def test_leaves_are_listed_in_order_with_their_place() -> None:
    a, b, c, d, e = torch.arange(5.0)
    inner = Frozen([d])
    data = collections.OrderedDict(
        x=[a, (b, 'text', None)], y=Named(c, 1), z=Own(dict(inner=inner)), w=e, n=1
    )
    found = leaves(data)
    assert [(written(path), each) for path, each in found] == [
        ("['x'][0]", a),
        ("['x'][1][0]", b),
        ("['y'][0]", c),
        ("['z']", data['z']),
        ("['z']['feature']['inner']", inner),
        ("['z']['feature']['inner']['feature'][0]", d),
        ("['w']", e),
    ]
    assert [float(each) for each in tensors_in(data)] == [0, 1, 2, 3, 4]
    assert leaves(SimpleNamespace(size=3, name='x')) == []
    assert written(()) == ''


@pytest.mark.parametrize(
    'closed',
    [
        None,
        3,
        'text',
        np.zeros(3),
        Own,
        torch.Generator(),
    ],
)
def test_numbers_text_and_arrays_are_no_containers(closed: Any) -> None:
    assert leaves([closed]) == []
    assert snapshot([closed])[0] is closed
    assert replaced([closed], {})[0] is closed


@pytest.mark.parametrize(
    'closed',
    [nn.Linear(2, 2), lambda x: x, nn.Linear(2, 2).forward, iter([torch.zeros(2)])],
)
def test_what_is_called_or_runs_out_is_listed_as_it_is(closed: Any) -> None:
    assert leaves([closed]) == [((0,), closed)]
    assert snapshot([closed])[0] is closed
    assert replaced([closed], {})[0] is closed


def test_one_tensor_in_several_places_is_listed_and_replaced_at_each() -> None:
    tensor, new = torch.zeros(2), torch.ones(2)
    one = Own(tensor)
    data = [tensor, one, {'x': tensor}, one]
    assert [path for path, value in leaves(data) if value is tensor] == [
        (0,),
        (1, 'feature'),
        (2, 'x'),
        (3, 'feature'),
    ]
    changed = replaced(data, {id(tensor): new})
    assert changed[0] is changed[1].feature is changed[2]['x'] is new
    # one object stays one
    assert changed[1] is changed[3] is not one


@dataclass
class Node:
    feature: Any
    parts: list[Any] = field(default_factory=list)
    parent: Any = None


def test_an_object_that_holds_itself() -> None:
    tensor, other, new = torch.zeros(2), torch.ones(2), torch.ones(3)
    child = Node(other)
    whole = Node(tensor, [child])
    whole.parent, child.parent = whole, whole
    assert [value is tensor or value is other for value in tensors_in(whole)] == [
        True,
        True,
    ]
    assert leaves(whole)[0] == ((), whole)
    assert snapshot((whole,))[0] is whole
    assert replaced(whole, {}) is whole

    changed = replaced(whole, {id(tensor): new})
    assert changed is not whole and changed.feature is new
    # it holds itself again, not the one that it was made of
    assert changed.parent is changed
    assert changed.parts[0].parent is changed
    assert changed.parts[0].feature is other
    assert whole.feature is tensor and child.parent is whole


def test_a_snapshot_has_its_own_containers_and_the_same_values() -> None:
    tensor, own = torch.zeros(2), Own(torch.ones(2))
    data = collections.defaultdict(list, x=[tensor], y=Named({'z': own}))
    kept = snapshot(data)
    assert type(kept) is collections.defaultdict and kept['missing'] == []
    assert type(kept['y']) is Named
    assert kept['x'][0] is tensor and kept['y'].feature['z'] is own
    data['x'].append(3)
    data['y'].feature['more'] = 1
    data['new'] = 1
    assert kept['x'] == [tensor] and 'new' not in kept
    assert list(kept['y'].feature) == ['z']
    assert 'missing' not in data


def test_results_that_pytorch_names_are_tuples() -> None:
    result = torch.tensor([1.0, 3.0, 2.0]).topk(2)
    kept = snapshot(result)
    assert type(kept) is type(result) and kept.values is result.values
    new = torch.zeros(2)
    changed = replaced(result, {id(kept[0]): new})
    assert changed.values is new and changed.indices is kept[1]


def test_what_is_unchanged_is_the_very_same() -> None:
    tensor, new = torch.zeros(2), torch.ones(2)
    still, moved = Frozen({'x': torch.ones(1)}), Frozen({'x': tensor})
    meta = SimpleNamespace(shape=(3, 4), scale=MappingProxyType(dict(x=2)))
    whole = Own([still, moved, meta])
    changed = replaced(whole, {id(tensor): new})
    assert changed.feature[0] is still and changed.feature[2] is meta
    assert changed.feature[1] is not moved and changed.size is whole.size
    assert changed.feature[1].feature['x'] is new
    assert moved.feature['x'] is tensor
    # not by equal values, but by identity
    twin: Tensor = tensor.clone()
    assert replaced([twin], {id(tensor): new})[0] is twin
    assert copy.copy(whole).feature is whole.feature


class Sized(list):  # type: ignore[type-arg]
    def __init__(self, items: Any, sizes: Any) -> None:
        super().__init__(items)
        self.sizes = sizes


class Two(tuple):  # type: ignore[type-arg]
    def __new__(cls, one: Any, other: Any) -> Any:
        return tuple.__new__(cls, (one, other))


@pytest.mark.parametrize(
    'hold',
    [
        lambda x: Sized([x], [3]),
        lambda x: Two(x, None),
        lambda x: deque([x]),
        lambda x: {x},
        lambda x: frozenset([x]),
        lambda x: torch.max(x[None], 0),
        lambda x: (x, torch.Size([2, 3])),
    ],
)
def test_items_of_every_class_are_replaced(hold: Any) -> None:
    data = hold(torch.zeros(2))
    tensor, new = tensors_in(data)[0], torch.ones(2)
    for copied in (snapshot(data), replaced(data, {})):
        assert type(copied) is type(data) and copied is not data
        assert tensors_in(copied)[0] is tensor
        assert getattr(copied, 'sizes', [3]) == [3]
    changed = replaced(data, {id(tensor): new})
    assert type(changed) is type(data)
    assert tensors_in(changed)[0] is new


class Listed(dict):  # type: ignore[type-arg]
    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, [value])


def test_a_dict_that_changes_what_it_is_given_is_copied_as_it_is() -> None:
    tensor, new = torch.zeros(2), torch.ones(2)
    data = Listed(x=tensor)
    kept, changed = snapshot(data), replaced(data, {id(tensor): new})
    assert type(kept) is type(changed) is Listed
    assert kept['x'] is data['x'] is tensor and changed['x'] is new


def test_a_tuple_keeps_what_it_holds_by_name() -> None:
    tensor, new = torch.zeros(2), torch.ones(2)
    data = Two(tensor, None)
    data.scale, data.feature = 3, tensor
    kept = snapshot(data)
    assert kept is not data and kept.scale == 3 and kept.feature is tensor
    changed = replaced(data, {id(tensor): new})
    assert changed[0] is changed.feature is new and changed.scale == 3
    assert data[0] is data.feature is tensor


class OneSlot:
    __slots__ = 'feature'

    def __init__(self, feature: Any) -> None:
        self.feature = feature


def test_a_single_slot_may_be_written_as_text() -> None:
    tensor, new = torch.zeros(2), torch.ones(2)
    data = OneSlot(tensor)
    assert leaves(data) == [((), data), (('feature',), tensor)]
    assert replaced(data, {id(tensor): new}).feature is new
    assert data.feature is tensor


def doubled(method: Any) -> Any:
    @functools.wraps(method)
    def wrapper(*args: Any) -> Any:
        return 2 * method(*args)

    return wrapper


class Decorated:
    @doubled
    def method(self, x: float) -> float:
        return x


def test_a_decorated_method_is_that_of_the_objects_version() -> None:
    ours, theirs = Decorated(), Decorated()
    assert method_in(ours.method).__self__ is ours
    # also while it is recorded
    recorded = doubled(ours.method)
    assert method_in(recorded).__self__ is ours
    found = replaced([ours.method, recorded], {id(ours): theirs})
    assert [method.__self__ for method in found] == [theirs, theirs]
    assert method_in(len) is None
