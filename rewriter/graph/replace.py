"""Puts a rule's replacement into the graph and keeps the mirror in step."""

from __future__ import annotations

import functools

from rewriter import torch_ir
from rewriter.graph.conditions import Judgement
from rewriter.graph.facts import TensorFacts
from rewriter.graph.inference import Impossible, Inference
from rewriter.graph.match import Match
from rewriter.graph.overloads import Known, Supply, converted, takes
from rewriter.graph.recipes import Operandlike, Recipes, computed
from rewriter.graph.view import LOOKING, Node, Value, View, destroy, link, unlink
from rewriter.language.kinds import Kind
from rewriter.language.rule import Call, Step
from rewriter.language.syntax import Computed, Constant, Literal, Operand, Sequence, Var, read_variables


class Replacer:
    """Builds replacements in one graph. Constants and prepared weights are made once and shared.

    functional: nothing in the graph is written to, so that it does not matter whose memory a result shares.
    """

    def __init__(self, view: View, *, functional: bool) -> None:
        self.view, self.functional = view, functional
        self.graph = view.graph
        self.recipes = Recipes(view)
        self.constants: dict[tuple[type, str], Value] = {}
        self.inference = Inference()

    def replace(self, match: Match, judgement: Judgement, place: Node) -> list[Node]:
        """Puts the replacement before `place`; the new nodes.

        Raises Impossible, and leaves the graph as it was, if it cannot be built for this match.
        """
        before = len(self.recipes.made)
        try:
            names = self.recipes.prepare(match, judgement, self.inference)
            return self.build(match, names, judgement, place)
        except Impossible:
            self.recipes.withdraw(before)
            raise

    def build(self, match: Match, names: dict[str, Operandlike], judgement: Judgement, place: Node) -> list[Node]:
        """Creates the replacement's nodes before `place`, redirects the outputs' users, and retires the match.

        Raises Impossible, and leaves the graph as it was, if no overload takes the operands.
        """
        rule = match.pattern.rule
        made: list[Node] = []
        try:
            for step in rule.replace:
                self.statement(step, match, names, judgement, place, made)
            pairs = [pair for name in match.pattern.results for pair in _pairs(name, match.values(name), names[name])]
        except Impossible:
            self.discard(made)
            raise
        origins = frozenset().union(*(node.origins for node in match.nodes))
        replaces_place = any(node is place for node in match.nodes)
        gap = place.gap if replaces_place else place.gap / 2
        for index, node in enumerate(made):
            node.gap = gap / len(made)
            node.order = place.order - place.gap + node.gap * (index + 1)
            node.origins = origins
            node.rule = rule.id
        if not replaces_place:
            place.gap = gap
        self.retire(match)
        for old, new in pairs:
            self.redirect(old, new)
            if self.functional:
                self.view_as_reshape(new)
        self.retire_unread([*made, *(value.producer for node in match.nodes for value in node.inputs)])
        return [node for node in made if node.alive]

    def statement(
        self,
        step: Step,
        match: Match,
        names: dict[str, Operandlike],
        judgement: Judgement,
        place: Node,
        made: list[Node],
    ) -> None:
        statement = step.statement
        if not step.calls:
            names[step.targets[0]] = self.alias(statement.arguments[0].operand, names, judgement, place)
            return
        call, supplies = self.choose(step, names, judgement)
        inputs = [self.supplied(kind, supply, place, made) for kind, supply in zip(call.types, supplies, strict=True)]
        # Weights that are prepared in good faith may not fit what reads them: a bias of one element for all channels.
        if not match.pattern.prepared.isdisjoint(var.name for var in read_variables(statement)):
            self.inference.check(call, inputs)
        outputs = match.bound.get(step.targets[0])
        count = len(outputs) if statement.starred and isinstance(outputs, list) else len(step.targets)
        ir = torch_ir.insert_before(self.graph, place.ir, call.op, [v.ir for v in inputs], 1 if call.unpacks else count)
        node = self.node(ir, call.op, inputs)
        made.append(node)
        results = list(ir.outputs())
        kinds = call.returns
        if call.unpacks:
            results[0].setType(call.returns[0].ir)
            unpack = torch_ir.insert_before(self.graph, place.ir, "prim::ListUnpack", results, count)
            results = list(unpack.outputs())
            kinds = (call.returns[0].element or call.returns[0],) * count
            node.unpacked = True
        node.outputs = [_result(ir, node, kind) for ir, kind in zip(results, kinds, strict=True)]
        if statement.starred:
            names[step.targets[0]] = list(node.outputs)
        else:
            names.update(zip(step.targets, node.outputs, strict=True))
        if not match.pattern.outputs.issuperset(step.targets):
            for index, value in enumerate(node.outputs):
                value.infer(functools.partial(self.inference.result, call, inputs, index))

    def choose(self, step: Step, names: dict[str, Operandlike], judgement: Judgement) -> tuple[Call, list[Supply]]:
        for call in step.calls:
            supplies = [self.supply(operand, names, judgement) for operand in call.operands]
            if takes(call, supplies):
                return call, supplies
        raise Impossible(f"no overload of {step.calls[0].op} takes these operands")

    def alias(self, operand: Operand, names: dict[str, Operandlike], judgement: Judgement, place: Node) -> Value:
        supply = self.supply(operand, names, judgement)
        if isinstance(supply, Known):
            return self.constant(supply.value)
        if isinstance(supply, list):
            raise Impossible("a list cannot take the place of a result")
        return self.reachable(supply, place)

    def supply(self, operand: Operand, names: dict[str, Operandlike], judgement: Judgement) -> Supply:
        if isinstance(operand, Var):
            bound = names[operand.name]
            if isinstance(bound, Value):
                return bound
            if isinstance(bound, list):
                raise Impossible(f"{operand.name} stands for several values")
            return Known(bound)
        if isinstance(operand, Literal):
            return Known(operand.value)
        if isinstance(operand, Computed):
            return Known(computed(operand, judgement))
        if not isinstance(operand, Sequence):
            raise Impossible("an operand without a value")
        return [self.supply(item, names, judgement) for item in operand.items]

    def supplied(self, kind: Kind, supply: Supply, place: Node, made: list[Node]) -> Value:
        """The value of an operand for a schema's type; a list becomes a node of its own, appended to `made`."""
        if isinstance(supply, list):
            assert kind.element is not None
            items = [self.supplied(kind.element, item, place, made) for item in supply]
            ir = torch_ir.insert_before(self.graph, place.ir, "prim::ListConstruct", [item.ir for item in items])
            ir.output().setType(kind.required)
            node = self.node(ir, "prim::ListConstruct", items)
            node.outputs = [Value(ir.output(), node)]
            made.append(node)
            return node.outputs[0]
        if isinstance(supply, Value):
            known = converted(kind, supply)
            if known is None:
                return self.reachable(supply, place)
            supply = known
        value = supply.value
        if value == ():
            return self.supplied(kind, [], place, made)
        return self.constant(float(value) if kind.name == "FloatType" and type(value) is int else value)

    def reachable(self, value: Value, place: Node) -> Value:
        """The value itself. What stands after `place` is moved: a constant to the front, a look to before `place`."""
        producer = value.producer
        if producer is None or producer.order < place.order:
            return value
        if producer.op == "prim::Constant":
            producer.ir.moveBefore(next(iter(self.graph.nodes())))
            producer.order = -1.0
            return value
        for operand in producer.inputs:
            self.reachable(operand, place)
        producer.ir.moveBefore(place.ir)
        if producer.unpacked:
            producer.outputs[0].ir.node().moveBefore(place.ir)
        producer.gap = place.gap = place.gap / 2
        producer.order = place.order - place.gap
        return value

    def node(self, ir: torch_ir.IRNode, op: str, inputs: list[Value]) -> Node:
        node = Node(ir, op, inputs, 0.0, frozenset())
        link(node)
        self.view.nodes.append(node)
        self.view.by_op.setdefault(op, []).append(node)
        return node

    def constant(self, value: Constant) -> Value:
        key = (type(value), repr(value))
        if key not in self.constants:
            ir = torch_ir.insert_constant(self.graph, list(value) if isinstance(value, tuple) else value)
            producer = Node(ir.node(), "prim::Constant", [], -1.0, frozenset())
            producer.outputs = [Value(ir, producer)]
            self.constants[key] = producer.outputs[0]
        return self.constants[key]

    def discard(self, made: list[Node]) -> None:
        """Takes back nodes that were just made."""
        for node in made:
            unlink(node)
        for node in reversed(made):
            self.view.nodes.pop()
            self.view.by_op[node.op].pop()
        destroy(made)

    @staticmethod
    def retire(match: Match) -> None:
        """Takes the covered nodes out of the mirror."""
        for node in match.nodes:
            node.alive = False
            unlink(node)

    @staticmethod
    def retire_unread(candidates: list[Node | None]) -> None:
        """Takes those out that nobody reads: as readers of their operands they would keep other rules away."""
        pending = list(candidates)
        while pending:
            node = pending.pop()
            if node is None or not node.alive or node.op not in LOOKING or any(value.uses for value in node.outputs):
                continue
            node.alive = False
            unlink(node)
            pending += [value.producer for value in node.inputs]

    def view_as_reshape(self, value: Value) -> None:
        """Has the value, whose elements may lie otherwise than before, reshaped where it was viewed."""
        for user in [user for user, slot in value.uses if user.op == "aten::view" and slot == 0]:
            if user.inputs[1].ir.type().kind() != "ListType":
                continue
            (result,) = user.outputs
            made = torch_ir.insert_before(self.graph, user.ir, "aten::reshape", [each.ir for each in user.inputs])
            made.output().setType(result.ir.type())
            result.ir.replaceAllUsesWith(made.output())
            user.ir.destroy()
            self.view.by_op["aten::view"].remove(user)
            self.view.by_op.setdefault("aten::reshape", []).append(user)
            user.ir, user.op, result.ir = made, "aten::reshape", made.output()

    @staticmethod
    def redirect(old: Value, new: Value) -> None:
        if new.producer is not None and new.producer.rule is not None and not new.known_facts:
            kind = old.ir.type()
            new.ir.setType(kind)
            # The old value may stand for something that the trace has not seen, and know more than its type.
            new.infer(functools.partial(_facts, old))
        for user, slot in old.uses:
            user.inputs[slot] = new
            new.uses[user, slot] = None
        old.uses = {}
        old.ir.replaceAllUsesWith(new.ir)


def _facts(value: Value) -> TensorFacts | None:
    return value.facts


def _result(ir: torch_ir.IRValue, node: Node, kind: Kind) -> Value:
    # What torch creates is a tensor until told otherwise.
    if kind.name != "TensorType":
        ir.setType(kind.ir)
    value = Value(ir, node)
    value.kind = kind.name
    return value


def _pairs(name: str, old: list[Value], new: Operandlike) -> list[tuple[Value, Value]]:
    """Each output of the pattern with what takes its place. Raises Impossible if they are not of one type."""
    fresh = new if isinstance(new, list) else [new]
    pairs: list[tuple[Value, Value]] = []
    for before, after in zip(old, fresh, strict=True):
        assert isinstance(after, Value)
        if before.kind != after.kind:
            raise Impossible(f"{name} would become a {after.kind} instead of a {before.kind}")
        pairs.append((before, after))
    return pairs
