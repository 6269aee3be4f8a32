"""The evaluator: the model and the baselines on the same users, through the same code, under the protocol of leave-one-out.

Shape letters: B batch, U users, k length of a ranked list.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from data.io.progress import progress
from data.processed import SeqData
from data.schemas import PAD, SeqBatch
from evaluate.evaluation import Evaluation, evaluate_lists, sample_table, slice_users
from evaluate.metrics import target_ranks
from evaluate.rankers import CodeRanker, Ranker, ScoredRanker, TrainedRanker
from modules.runtime.evaluation.parallel_search import search_all
from modules.runtime.runs.finished import open_finished
from modules.runtime.runs.ranks_file import RankedUsers
from modules.runtime.training.processes import Ranks

Part = Literal["validation", "test"]


class Protocol(NamedTuple):
    """How rankers are evaluated."""

    filter_history: bool
    cutoffs: tuple[int, ...]
    batch_size: int
    users: int | None  # of the validations during training
    seed: int

    @property
    def width(self) -> int:
        """Items of a ranked list."""
        return max(*self.cutoffs, 10)


class Lists(NamedTuple):
    """What a ranker found for some users."""

    users: Tensor  # [U] rows of the users
    histories: Tensor  # [U] items before the target
    targets: Tensor  # [U] items
    ranked: Tensor  # [U, k] items
    scores: Tensor | None  # [U, k] what ranks them, of a ScoredRanker or CodeRanker
    tuples: Tensor | None  # [U, k] distinct tuples of codes, of a CodeRanker


class Evaluator:
    """Evaluates on the processes of a run together: each takes its share of the batches, the first puts the lists together.

    Every method must be called by every process.

    Args:
        ranker: what the run trains.
        data: its users.
        protocol: see there.
        ranks: the processes.
        pause: called between two batches; may raise to end a long evaluation.
        split: names the data and their split.
    """

    def __init__(
        self,
        ranker: TrainedRanker,
        data: SeqData,
        protocol: Protocol,
        ranks: Ranks | None = None,
        pause: Callable[[], None] = lambda: None,
        split: str = "",
    ) -> None:
        self.ranker, self.data, self.protocol, self.split = ranker, data, protocol, split
        self.ranks, self.pause = ranks or Ranks(), pause
        self.record: Callable[[str, Part, RankedUsers], None] = lambda row, part, users: None
        self.sample: Tensor | None = None
        if protocol.users is not None and protocol.users < len(data.split.validation.users):
            self.sample = self._some_users(protocol.users)

    @classmethod
    def for_run(
        cls,
        run: Path,
        device: str = "auto",
        users: int | None = None,
        seed: int = 0,
        dataset_folder: str | None = None,
        beam_size: int | None = None,
        batch_size: int | None = None,
    ) -> "Evaluator":
        """The evaluator of a finished run, which searches its users as the run's own report did.

        Args:
            run: the directory of a finished run of train_decoder.py.
            device: where to evaluate: auto, cuda, mps or cpu.
            users: of validations with ``sample=True``; None: all.
            seed: draws them.
            dataset_folder: where the data lie now; None: where the run was trained from.
            beam_size: another one than the run's.
            batch_size: users a batch; None: the run's.

        Raises:
            UserError: no finished run, or data that are not those it was trained on.
        """
        finished = open_finished(run, device, dataset_folder, beam_size)
        protocol = Protocol(finished.filter_history, finished.cutoffs, batch_size or finished.batch_size, users, seed)
        return cls(finished.recommender, finished.sequences.data, protocol, split=finished.sequences.split)

    def _some_users(self, count: int) -> Tensor:
        users = self.data.split.validation.users
        generator = torch.Generator().manual_seed(self.protocol.seed)
        return users[torch.randperm(len(users), generator=generator)[:count].to(users.device)]

    @property
    def device(self) -> torch.device:
        """Where batches come out."""
        return self.data.split.full.item_ids.device

    def _batches(self, part: Part, users: Tensor | None = None, what: str | None = None) -> Iterator[SeqBatch]:
        """This process' batches; ``what`` is counted by a bar."""
        batches = list(self.data.eval_batches(part, self.protocol.batch_size, users))
        own = batches[self.ranks.index :: self.ranks.count]
        for batch in progress(own, desc=f"{what}, {part}", disable=what is None or not self.ranks.main):
            self.pause()
            yield batch

    def _lists(self, ranker: Ranker, batches: Iterable[SeqBatch], filter_history: bool) -> Lists | None:
        """What is found for all processes' batches, on the first process: batch i is number i // count of process i % count."""
        width = self.protocol.width

        @torch.no_grad()
        def find(batch: SeqBatch) -> Lists:
            history = batch.item_ids if batch.seen is None else batch.seen
            ranked, scores, tuples = ranked_lists(ranker, batch, width, filter_history)
            users = batch.user_ids.cpu(), (history != PAD).sum(1).cpu(), batch.targets[:, 0].cpu()
            return Lists(*users, ranked.cpu(), None if scores is None else scores.cpu(), None if tuples is None else tuples.cpu())

        shares = self.ranks.gather(search_all(find, batches, self.device, self.pause))
        if not self.ranks.main:
            return None
        count = self.ranks.count
        in_order = [shares[i % count][i // count] for i in range(sum(map(len, shares)))]
        users, histories, targets, ranked, scores, tuples = zip(*in_order)
        found = torch.cat(users), torch.cat(histories), torch.cat(targets), torch.cat(ranked)
        return Lists(*found, None if scores[0] is None else torch.cat(scores), None if tuples[0] is None else torch.cat(tuples))

    def evaluate(
        self, ranker: Ranker, part: Part, filter_history: bool, sample: bool = False, progress: bool = False, row: str | None = None
    ) -> Evaluation:
        """A ranker's item-level figures, and what matching codes would have claimed where it has codes; the same on every process.

        Args:
            ranker: trained or not.
            part: whose targets.
            filter_history: bar the items of the history.
            sample: only ``protocol.users`` users.
            progress: show a bar.
            row: its name in the report, under which ``record`` gets the lists; None: they are not recorded.
        """
        batches = self._batches(part, self.sample if sample else None, ranker.name if progress else None)
        lists, evaluation = self._lists(ranker, batches, filter_history), None
        if lists is not None:
            of_targets = ranker.tuples_of(lists.targets.to(self.device)).cpu() if isinstance(ranker, CodeRanker) else None
            evaluation = evaluate_lists(lists.ranked, lists.targets, part, filter_history, self.protocol.cutoffs, lists.tuples, of_targets)
            if row is not None:
                self._record(row, part, lists, evaluation.ranks, of_targets)
        shared = self.ranks.from_main(evaluation)
        assert shared is not None
        return shared

    def _record(self, row: str, part: Part, lists: Lists, ranks: Tensor, code_targets: Tensor | None = None) -> None:
        code_ranks = None if lists.tuples is None or code_targets is None else target_ranks(lists.tuples, code_targets)
        self.record(row, part, RankedUsers(lists.users, lists.histories, lists.targets, ranks, code_ranks, lists.ranked, lists.scores))

    def model(self, part: Part, filter_history: bool, sample: bool = False, progress: bool = False, row: str | None = None) -> Evaluation:
        """``evaluate`` of what the run trains."""
        return self.evaluate(self.ranker, part, filter_history, sample, progress, row)

    def baselines(self, part: Part, filter_history: bool, rankers: Sequence[Ranker]) -> list[tuple[str, Evaluation]]:
        """A row for each of ``rankers``, on all users."""
        return [(ranker.name, self.evaluate(ranker, part, filter_history, row=ranker.name)) for ranker in rankers]

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Teacher-forced loss of the validation items of the sampled users."""
        total = torch.zeros(2, device=self.device)  # loss and users
        for batch in self._batches("validation", self.sample):
            loss = self.ranker.loss(batch)
            total += torch.stack([loss * len(batch.user_ids), loss.new_tensor(len(batch.user_ids))])
        loss_sum, users = self.ranks.total(total).tolist()
        return loss_sum / users

    def unseen(self, part: Part, rows: list[tuple[str, Evaluation]]) -> list[tuple[str, Evaluation]]:
        """The rows for the users whose item training never saw, and the model's when it may find such items only; [] without such users."""
        targets = self.data.split.validation if part == "validation" else self.data.split.test
        cold = self.data.popularity == 0
        users = targets.users[cold[self.data.split.items(targets)]]
        if not len(users):
            return []
        barred, cutoffs = self.protocol.filter_history, self.protocol.cutoffs
        lists = self._lists(self.ranker.among(cold.nonzero().flatten()), self._batches(part, users), barred)
        among = "whose item training never saw"
        sliced = [(name, slice_users(evaluation, cold.cpu()[evaluation.targets], among, cutoffs)) for name, evaluation in rows]
        if lists is not None:
            only = evaluate_lists(lists.ranked, lists.targets, part, barred, cutoffs)._replace(among=among)
            name = f"{self.ranker.name} among such items only"
            self._record(name, part, lists, only.ranks)
            sliced.insert(1, (name, only))
        return sliced

    def samples(self, count: int = 5, top: int = 5) -> "Samples":
        """A few users' histories, held-out validation items and what the model recommends."""
        histories, targets, ranked = [], [], []
        for batch in self.data.eval_batches("validation", count, self._some_users(count)):
            histories += [[item for item in history if item != PAD] for history in batch.item_ids.tolist()]
            targets += batch.targets[:, 0].tolist()
            ranked.append(self.ranker.recommend(batch, top, self.protocol.filter_history).cpu())
        return Samples(histories, targets, torch.cat(ranked))


def ranked_lists(ranker: Ranker, batch: SeqBatch, width: int, filter_history: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Items [B, k], and what the ranker has of scores [B, k] and of tuples of codes [B, k]."""
    if isinstance(ranker, CodeRanker):
        return ranker.find(batch, width, filter_history)
    if isinstance(ranker, ScoredRanker):
        return *ranker.ranked(batch, width, filter_history), None
    return ranker.recommend(batch, width, filter_history), None, None


class Samples(NamedTuple):
    histories: list[list[int]]  # items, oldest first
    targets: list[int]
    ranked: Tensor  # [U, k]

    def table(self, titles: list[str]) -> str:
        """As titles, ``*`` at the hit."""
        recommended = [[titles[item] for item in items if item != PAD] for items in self.ranked.tolist()]
        ranks = target_ranks(self.ranked, torch.tensor(self.targets)).tolist()
        histories = [[titles[item] for item in history] for history in self.histories]
        return sample_table(histories, [titles[item] for item in self.targets], recommended, ranks, top=self.ranked.shape[1])

    def rows(self, titles: list[str]) -> list[list[str]]:
        """History, held-out item and recommendations of each user, titles joined by " | "."""
        columns = zip(self.histories, ([target] for target in self.targets), self.ranked.tolist())
        return [[" | ".join(titles[item] for item in items if item != PAD) for items in row] for row in columns]
