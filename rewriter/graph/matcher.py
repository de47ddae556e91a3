"""Finds one pattern around one node: a `Match`, or else a `Refusal` with the reason and the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rewriter.graph.match import Bound, Match, Refusal, same_constant
from rewriter.graph.pattern import Move, Pattern, may_commute
from rewriter.graph.siblings import kind_of, starred_values, with_room
from rewriter.graph.view import NOT_CONSTANT, Node, NotConstant, Value
from rewriter.language.rule import Call, Step
from rewriter.language.syntax import Literal, Operand, Sequence, Skip, Var


class Matcher:
    """One attempt: a pattern at a candidate for its root.

    `check` decides about a complete binding: None, or the reason against it. Then the next way to bind is tried.
    """

    def __init__(self, pattern: Pattern, root: Node, check: Callable[[Match], str | None]) -> None:
        self.pattern = pattern
        self.root = root
        self.check = check
        self.bound: dict[str, Bound] = {}
        self.nodes: list[Node] = []
        self.depth = 0
        self.reason = ""
        self.culprit = root

    def run(self) -> Match | None:
        """The first match that `check` accepts, or None; then `refusal` says why."""
        for _ in self.statement(self.pattern.root, self.root, 0):
            found = self.follow(0)
            if found is not None:
                return found
        return None

    def refusal(self) -> Refusal:
        return Refusal(
            rule=self.pattern.rule.id,
            reason=self.reason,
            node=repr(self.culprit),
            scope=self.culprit.scope,
            depth=self.depth,
            total=len(self.pattern.rule.match),
        )

    def refuse(self, reason: str, node: Node, depth: int) -> None:
        """Keeps the reason of the attempt that came farthest."""
        if depth > self.depth or not self.reason:
            self.depth, self.reason, self.culprit = depth, reason, node

    def follow(self, index: int) -> Match | None:
        """Matches the moves from `index` on; backtracks over every way to bind them."""
        if index == len(self.pattern.moves):
            match = Match(self.pattern, self.root, dict(self.bound), _without_shared_lists(self.nodes))
            reason = self.check(match)
            if reason is None:
                return match
            self.refuse(reason, self.root, len(self.pattern.rule.match))
            return None
        move = self.pattern.moves[index]
        for node in self.candidates(move, index):
            for _ in self.statement(move.step, node, index + 1):
                found = self.follow(index + 1)
                if found is not None:
                    return found
        return None

    def candidates(self, move: Move, index: int) -> list[Node]:
        if move.by_result is not None:
            bound = self.bound[move.by_result]
            producer = bound.producer if isinstance(bound, Value) else None
            if producer is None:
                self.refuse(f"{move.by_result} is an input, not made by {_ops(move.step)}", self.root, index + 1)
            return [producer] if producer is not None else []
        values = [self.bound.get(name) for name in move.by_operand]
        users = [value.uses for value in values if isinstance(value, Value) and value.constant is NOT_CONSTANT]
        ops = {call.op for call in move.step.calls}
        found = list(dict.fromkeys(node for node, _ in min(users, key=len, default={}) if node.op in ops))
        if not found:
            self.refuse(f"no {_ops(move.step)} reads {' or '.join(move.by_operand)}", self.root, index + 1)
        return found

    def statement(self, step: Step, node: Node, level: int) -> Iterator[None]:
        """Yields once for every way in which the node can be the statement, with the names bound meanwhile.

        `level`: how many statements have been found before.
        """
        if any(node is known for known in self.nodes):
            self.refuse(f"{node.op} stands for two statements", node, level)
            return
        found = False
        for call in step.calls:
            if call.op != node.op or len(call.operands) != len(node.inputs) or call.unpacks != node.unpacked:
                continue
            found = True
            if step.statement.starred and not call.unpacks:
                yield from self.siblings(step, call, node, level)
                continue
            for inputs in _orders(call, node):
                before, depth = len(self.bound), len(self.nodes)
                self.nodes.append(node)
                if self.call(step, call, node, inputs, level) and self.results(step, node, level):
                    yield
                self.undo(before, depth)
        if not found:
            reason = f"found {node.op} with {len(node.inputs)} operands instead of {_ops(step)}"
            self.refuse(reason, node, level)

    def undo(self, bound: int, nodes: int) -> None:
        """Forgets what was bound and covered last; names are never bound anew, only added."""
        del self.nodes[nodes:]
        while len(self.bound) > bound:
            self.bound.popitem()

    def call(self, step: Step, call: Call, node: Node, inputs: list[Value], level: int) -> bool:
        if step.statement.choice is not None:
            self.bound[step.statement.choice] = call.op.split("::")[1]
        for name, operand, value in zip(call.names, call.operands, inputs, strict=True):
            reason = self.operand(operand, value)
            if reason is not None:
                self.refuse(f"{name}: {reason}", node, level)
                return False
        return True

    def results(self, step: Step, node: Node, level: int) -> bool:
        targets = step.targets
        if step.statement.starred:
            self.bound[targets[0]] = list(node.outputs)
            return True
        if len(node.outputs) != len(targets):
            self.refuse(f"{node.op} has {len(node.outputs)} results instead of {len(targets)}", node, level)
            return False
        for name, value in zip(targets, node.outputs, strict=True):
            if self.bound.setdefault(name, value) is not value:
                self.refuse(f"another value than the {name} that the rest of the pattern reads", node, level)
                return False
        return True

    def operand(self, operand: Operand, value: Value) -> str | None:
        """Binds an operand; the reason if it does not fit."""
        if isinstance(operand, Var):
            return self.variable(operand, value)
        if isinstance(operand, Literal):
            if same_constant(operand.value, value.constant):
                return None
            found = "a value computed in the graph" if value.constant is NOT_CONSTANT else repr(value.constant)
            return f"found {found} instead of {operand.value!r}"
        if isinstance(operand, Sequence):
            return self.sequence(operand, value)
        return None if isinstance(operand, Skip) else "an expression cannot be matched"

    def variable(self, var: Var, value: Value) -> str | None:
        known = self.bound.get(var.name)
        if known is not None:
            same = known is value or (
                isinstance(known, Value)
                and not isinstance(known.constant, NotConstant)
                and same_constant(known.constant, value.constant)
            )
            return None if same else f"another value than the {var.name} before it"
        makers = self.pattern.producers.get(var.name)
        if makers is not None:
            if value.producer is None or value.producer.op not in makers:
                found = value.producer.op if value.producer is not None else "an input"
                return f"{var.name} comes from {found} instead of {' or '.join(sorted(makers))}"
        elif not var.optional and value.constant is None:
            return f"{var.name} is None"
        self.bound[var.name] = value
        return None

    def sequence(self, operand: Sequence, value: Value) -> str | None:
        producer = value.producer
        if producer is None or producer.op != "prim::ListConstruct" or len(producer.inputs) != len(operand.items):
            found = "another list" if value.constant is NOT_CONSTANT else repr(value.constant)
            return f"found {found} instead of a list of {len(operand.items)} values"
        for item, element in zip(operand.items, producer.inputs, strict=True):
            reason = self.operand(item, element)
            if reason is not None:
                return reason
        self.nodes.append(producer)
        return None

    def siblings(self, step: Step, call: Call, first: Node, level: int) -> Iterator[None]:
        """Binds the starred names to all nodes that share the statement's other operands with `first`."""
        shared = [
            value
            for operand, value in zip(call.operands, first.inputs, strict=True)
            if isinstance(operand, Var) and not operand.starred and value.constant is NOT_CONSTANT
        ]
        hub = min((value.uses for value in shared), key=len, default={})
        users = {node for node, _ in hub if node.op == call.op}
        if len(users) < 2:
            self.refuse("no sibling shares its operands", first, level)
            return
        kind = kind_of(first, call)
        before, depth = len(self.bound), len(self.nodes)
        group: dict[int, Node] = {}
        columns: dict[int, list[Value]] = {}
        # The candidate itself first: what the siblings must share is what it has.
        for node in (first, *sorted(users, key=_order)):
            if id(node) in group or len(node.inputs) != len(call.operands) or kind_of(node, call) != kind:
                continue
            known, covered = len(self.bound), len(self.nodes)
            if all(node is not other for other in self.nodes) and self.sibling(call, node):
                group[id(node)] = node
                columns[id(node)] = starred_values(call, node)
            else:
                self.undo(known, covered)
        names = [operand.name for operand in call.operands if isinstance(operand, Var) and operand.starred]
        members = with_room(sorted(group.values(), key=_order), first, columns)
        reason = self.group_refusal(call, members, first)
        if reason is not None:
            self.refuse(reason, first, level)
        else:
            if step.statement.choice is not None:
                self.bound[step.statement.choice] = call.op.split("::")[1]
            for index, name in enumerate(names):
                self.bound[name] = [columns[id(node)][index] for node in members]
            self.bound[step.targets[0]] = [node.outputs[0] for node in members]
            self.nodes.extend(members)
            yield
        self.undo(before, depth)

    def sibling(self, call: Call, node: Node) -> bool:
        return all(
            self.operand(operand, value) is None
            for operand, value in zip(call.operands, node.inputs, strict=True)
            if not (isinstance(operand, Var) and operand.starred)
        )

    @staticmethod
    def group_refusal(call: Call, members: list[Node], first: Node) -> str | None:
        if len(members) < 2 or first not in members:
            return "no sibling shares its operands"
        for operand, value in zip(call.operands, first.inputs, strict=True):
            if isinstance(operand, Var) and operand.starred and not operand.optional and value.constant is None:
                return f"{operand.name} is None"
        return None


def _orders(call: Call, node: Node) -> Iterator[list[Value]]:
    yield node.inputs
    if may_commute(call.op, call.operands):
        yield [node.inputs[1], node.inputs[0], *node.inputs[2:]]


def _without_shared_lists(nodes: list[Node]) -> list[Node]:
    """The nodes that the match covers: a list that is also read elsewhere stays where it is."""
    inside = {id(node) for node in nodes}
    return [
        node
        for node in nodes
        if node.op != "prim::ListConstruct" or all(id(user) in inside for user, _ in node.outputs[0].uses)
    ]


def _order(node: Node) -> float:
    return node.order


def _ops(step: Step) -> str:
    return " or ".join(sorted({call.op for call in step.calls}))
