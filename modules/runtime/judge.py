"""The judge: the model and the baselines on the same users, through the same evaluator, under the protocol of leave-one-out.

Shape letters: B batch, U users, W beams, k length of a ranked list.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.processed import SeqData
from data.schemas import PAD, SeqBatch
from evaluate.baselines import LastItemMarkov, MostPopular
from evaluate.metrics import sort_with_ties, target_ranks
from evaluate.report import Evaluation, evaluate_lists, sample_table, slice_users
from modules.runtime.device import Placement
from modules.runtime.graphs import ReplayedSearch
from modules.runtime.ranks import Ranks
from modules.runtime.retriever import Retriever, Shortlist

Part = Literal["validation", "test"]

SEARCHES_AT_ONCE = 8
"""Each takes memory of its own, about .2 GB for 64 users and 50 beams."""


class Protocol(NamedTuple):
    """How a model is judged."""

    beam_size: int
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
    """What a search found for some users."""

    ranked: Tensor  # [U, k] items
    tuples: Tensor  # [U, k] distinct tuples of codes, as trie nodes
    targets: Tensor  # [U] items


class Judge:
    """Evaluates on the processes of a run together: each takes its share of the batches, the first puts the lists together.

    Args:
        retriever: what is judged.
        data: its users.
        order: [I] rank of every item in the order that breaks ties.
        protocol: see there.
        placement: device and autocast.
        ranks: the processes.
        pause: called between two batches; may raise to end a long evaluation.
        cuda_graphs: replay the search as CUDA graphs where there is CUDA.
    """

    def __init__(
        self,
        retriever: Retriever,
        data: SeqData,
        order: Tensor,
        protocol: Protocol,
        placement: Placement,
        ranks: Ranks | None = None,
        pause: Callable[[], None] = lambda: None,
        cuda_graphs: bool = False,
    ) -> None:
        self.retriever, self.data, self.order, self.protocol, self.placement = retriever, data, order, protocol, placement
        self.ranks, self.pause = ranks or Ranks(), pause
        self.finder: Retriever | ReplayedSearch = retriever
        if cuda_graphs and placement.device.type == "cuda":
            self.finder = ReplayedSearch(retriever, placement)
        self.sample: Tensor | None = None
        if protocol.users is not None and protocol.users < len(data.split.validation.users):
            self.sample = self._some_users(protocol.users)

    def _some_users(self, count: int) -> Tensor:
        users = self.data.split.validation.users
        generator = torch.Generator().manual_seed(self.protocol.seed)
        return users[torch.randperm(len(users), generator=generator)[:count].to(users.device)]

    def _batches(self, part: Part, sample: bool, progress: bool = False) -> Iterator[SeqBatch]:
        """This process' batches."""
        batches = list(self.data.eval_batches(part, self.protocol.batch_size, self.sample if sample else None))
        own = batches[self.ranks.index :: self.ranks.count]
        for batch in tqdm(own, desc=f"beam search, {part}", disable=not (progress and self.ranks.main), mininterval=1.0):
            self.pause()
            yield batch

    def _search_all(self, batches: Iterable[SeqBatch], filter_history: bool, among: Shortlist | None = None) -> list[Lists]:
        """What is found for each batch, on the CPU.

        A CPU searches several batches at a time, each by one of its threads where there are no more than ``SEARCHES_AT_ONCE``: a search is
        too many small operations for several threads to share one, above all where other processes are busy too.
        """

        def search(batch: SeqBatch) -> Lists:
            return Lists(*(field.cpu() for field in self._search(batch, filter_history, among)))

        threads = torch.get_num_threads()
        workers = min(threads, SEARCHES_AT_ONCE) if self.placement.device.type == "cpu" else 1
        if workers == 1:
            return [search(batch) for batch in batches]
        found, pending = [], deque[Future[Lists]]()
        # Said in every thread, because each has a count of its own in OpenMP and MKL, and here, because new threads begin with torch's.
        few = partial(torch.set_num_threads, threads // workers)
        few()
        try:
            with ThreadPoolExecutor(workers, initializer=few) as pool:
                try:
                    for batch in batches:
                        pending.append(pool.submit(search, batch))
                        if len(pending) > workers:
                            found.append(pending.popleft().result())
                    while pending:
                        self.pause()
                        found.append(pending.popleft().result())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            return found
        finally:
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _search(self, batch: SeqBatch, filter_history: bool, among: Shortlist | None = None) -> Lists:
        with self.placement.autocast():
            found = (among or self.finder).search(batch, self.protocol.beam_size, batch.seen if filter_history else None)
        ranked = sort_with_ties(found.item_ids, found.log_probs, self.order)
        return Lists(pad_to(ranked, self.protocol.width), pad_to(found.tuples, self.protocol.width), batch.targets[:, 0])

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Teacher-forced loss of the validation items of the sampled users."""
        model, tokenizer, _ = self.retriever
        total = torch.zeros(2, device=self.placement.device)  # loss and users
        for batch in self._batches("validation", sample=True):
            with self.placement.autocast():
                loss = model(tokenizer(batch)).loss
            total += torch.stack([loss * len(batch.user_ids), loss.new_tensor(len(batch.user_ids))])
        loss_sum, users = self.ranks.total(total).tolist()
        return loss_sum / users

    def model(self, part: Part, filter_history: bool, sample: bool = False, progress: bool = False) -> Evaluation:
        """The model's item-level figures, and what matching codes would have claimed; the same on every process."""
        shares = self.ranks.gather(self._search_all(self._batches(part, sample, progress), filter_history))
        evaluation = None
        if self.ranks.main:
            ranked, tuples, targets = self._in_order(shares)
            of_targets = self.retriever.tokenizer.tuples_of(targets.to(self.placement.device)).cpu()
            evaluation = evaluate_lists(ranked, targets, part, filter_history, self.protocol.cutoffs, tuples, of_targets)
        shared = self.ranks.from_main(evaluation)
        assert shared is not None
        return shared

    def unseen(self, part: Part, rows: list[tuple[str, Evaluation]]) -> list[tuple[str, Evaluation]]:
        """The rows for the users whose item training never saw, and the model's when it may find such items only; [] without such users.

        Every process must call it.
        """
        targets = self.data.split.validation if part == "validation" else self.data.split.test
        cold = self.data.popularity == 0
        users = targets.users[cold[self.data.split.items(targets)]]
        if not len(users):
            return []
        barred, cutoffs, shortlist = (
            self.protocol.filter_history,
            self.protocol.cutoffs,
            Shortlist(self.retriever, cold.nonzero().flatten()),
        )
        own = list(self.data.eval_batches(part, self.protocol.batch_size, users))[self.ranks.index :: self.ranks.count]
        shares = self.ranks.gather(self._search_all(own, barred, shortlist))
        among = "whose item training never saw"
        sliced = [(name, slice_users(evaluation, cold.cpu()[evaluation.targets], among, cutoffs)) for name, evaluation in rows]
        if self.ranks.main:
            ranked, _, items = self._in_order(shares)
            only = evaluate_lists(ranked, items, part, barred, cutoffs)._replace(among=among)
            sliced.insert(1, ("TIGER among such items only", only))
        return sliced

    def _in_order(self, shares: list[list[Lists]]) -> tuple[Tensor, Tensor, Tensor]:
        """Lists, tuples and targets in the order of one process: batch i is number i // count of process i % count."""
        count = self.ranks.count
        in_order = [shares[i % count][i // count] for i in range(sum(map(len, shares)))]
        ranked, tuples, targets = (torch.cat(field) for field in zip(*in_order))
        return ranked, tuples, targets

    def baselines(self, part: Part, filter_history: bool) -> list[tuple[str, Evaluation]]:
        """Most popular, and the items that most often followed the last one, on all users; both counted on the training part."""
        train = self.data.split.train
        markov = LastItemMarkov(train.item_ids, train.offsets, self.data.num_items, self.order)
        recommenders: list[tuple[str, MostPopular]] = [("most popular", MostPopular(self.order)), ("last item -> next (Markov)", markov)]
        rows = []
        for name, recommender in recommenders:
            ranked, targets = [], []
            for batch in self.data.eval_batches(part, self.protocol.batch_size):
                ranked.append(recommender.recommend(batch, self.protocol.width, filter_history).cpu())
                targets.append(batch.targets[:, 0].cpu())
            rows.append((name, evaluate_lists(torch.cat(ranked), torch.cat(targets), part, filter_history, self.protocol.cutoffs)))
        return rows

    def samples(self, count: int = 5, top: int = 5) -> "Samples":
        """A few users' histories, held-out validation items and what the model recommends."""
        histories, targets, ranked = [], [], []
        for batch in self.data.eval_batches("validation", count, self._some_users(count)):
            found = self._search(batch, self.protocol.filter_history)
            histories += [[item for item in history if item != PAD] for history in batch.item_ids.tolist()]
            targets += found.targets.tolist()
            ranked.append(found.ranked[:, :top].cpu())
        return Samples(histories, targets, torch.cat(ranked))


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


def pad_to(lists: Tensor, width: int) -> Tensor:
    """The first ``width`` columns [B, width], PAD where ``lists`` [B, W] is narrower."""
    return nn.functional.pad(lists[:, :width], (0, max(0, width - lists.shape[1])), value=PAD)
