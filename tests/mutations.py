"""Breaks the product on purpose, one line at a time, and makes sure that the tests notice.

    python -m tests.mutations            # all of them, about half an hour on 2 cores
    python -m tests.mutations T2 mask    # some

or at random, one comparison, operator or condition of any module at a time:

    python -m tests.mutations --reach TABLE                        # which test reaches what: once, as long as the tests
    python -m tests.mutations --reach TABLE --sample 150 --seed 1  # so many; --from 20 --to 40: a part of them

Works on a copy. Exits with 1 if a mutation survives (of those at random: more than 5 %), or no longer applies.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.dist import START
from tests.mutants.places import sample
from tests.mutants.reach import ReachTable
from tests.mutants.trial import try_all

ROOT = Path(__file__).parent.parent
MOST_SURVIVORS = 0.05
"""Share of the random ones."""
REACHING = ["tests/unit", "tests/parity", "tests/distributed", "tests/integration"]
TESTS = ["tests/unit/data/test_masking.py", "tests/parity"]
TESTS += ["tests/distributed/test_matrix.py", "tests/distributed/test_variable_microbatches.py"]
TESTS += ["tests/distributed/test_adapters.py"]
TESTS += ["tests/unit/numerics/test_block_choice.py", "tests/unit/models/test_narrowing.py"]
TESTS += ["tests/distributed/test_solved_filters.py", "tests/distributed/test_frozen_pipelines.py"]
TESTS += ["tests/distributed/test_gradient_balance.py", "tests/unit/objectives/test_gradient_balance.py"]


class Mutation(NamedTuple):
    """One line that would be wrong in another way."""

    file: str
    right: str
    wrong: str
    says: str


MUTATIONS = {
    "last_block_rows": Mutation(
        "runtime/last_block.py",
        "rows = batch.output_rows",
        "rows = batch.label_rows",
        "a teacher's last block runs where a token has a label, and not where predictions are compared",
    ),
    "last_block_token": Mutation(
        "runtime/last_block.py",
        'if tapped.pooled_token == "first":',
        "if True:",
        "a decoder's last block runs on the first token of a text",
    ),
    "frozen_more": Mutation(
        "models/frozen_prefix.py",
        "*blocks_of(model, family)[number:]",
        "*blocks_of(model, family)[number + 1 :]",
        "a block more is frozen than is asked for",
    ),
    "frozen_layer": Mutation(
        "runtime/frozen.py",
        "on_state(place, states[number_of(layer)])",
        "on_state(place, states[tapped.share.start])",
        "a layer within the frozen blocks is taken for that behind them",
    ),
    "frozen_weights": Mutation(
        "assembly/shared_prefix.py",
        "name in own and name in theirs and _are_equal(own[name], theirs[name])",
        "name in own and name in theirs",
        "first blocks are run once whatever their weights are",
    ),
    "frozen_border": Mutation(
        "assembly/shared_prefix.py",
        "own.start != theirs.start or own.start > number",
        "own.start > 0",
        "a teacher's state is sent over a border within blocks that both models share",
    ),
    "relation_direction": Mutation(
        "numerics/relations.py",
        "apart = (teacher.exp() * (teacher - student)).sum(-1).mean(1)",
        "apart = (student.exp() * (student - teacher)).sum(-1).mean(1)",
        "the teacher's relations are held against the student's",
    ),
    "relation_scale": Mutation(
        "numerics/relations.py",
        "math.sqrt(heads.shape[-1])",
        "math.sqrt(vectors.shape[-1])",
        "relations are scaled by the width of all heads",
    ),
    "relation_tokens": Mutation(
        "models/relation_taps.py",
        "self._seen.setdefault(name, output)",
        "self._seen[name] = output",
        "a DeBERTa's relations are those of its positions",
    ),
    "cka_of_rows": Mutation(
        "data/microbatch.py",
        "positions = None if stack == DECODER else self.position_ids",
        "positions = None",
        "documents that are packed into one row are compared as one text",
    ),
    "cka_centre": Mutation(
        "numerics/alignment.py",
        "mean = features.sum(1, keepdim=True) / keep.sum(-1).clamp(min=1)[:, None, None]",
        "mean = features.mean(1, keepdim=True)",
        "padding draws the mean of a text's features towards 0",
    ),
    "measured_locally": Mutation(
        "runtime/gradient_norms.py",
        "square += self._world.sum(gradient).double().square().sum()",
        "square += gradient.double().square().sum()",
        "gradients of terms are those of rank 0's texts",
    ),
    "measured_together": Mutation(
        "objectives/distill.py",
        "weights = Weights(*(float(name == alone) for name in WEIGHTS))",
        "weights = self._begun",
        "the gradient of all terms is taken for that of each",
    ),
    "measured_block": Mutation(
        "models/shared_block.py",
        "[number_of(first) - 1]]",
        "[-1]]",
        "gradients are compared on the last block, which most layers do not reach",
    ),
    "balance_draws": Mutation(
        "runtime/gradient_norms.py",
        "        restore_random_state(random)\n        forget_passes(",
        "        forget_passes(",
        "what is measured draws the random numbers of the step",
    ),
    "repeated_on_other_numbers": Mutation(
        "runtime/replay.py",
        "        restore_random_state(self._random)\n",
        "",
        "a step is repeated with other random numbers",
    ),
    "repeated_without_looking": Mutation(
        "runtime/replay.py",
        "chained(self._first[index], hash_of_bits(gradient))",
        "self._first[index] = hash_of_bits(gradient)",
        "of several microbatches the last alone is compared",
    ),
    "T2": Mutation(
        "numerics/task_terms.py",
        "return 1.0 if self.law is Law.NUMBER else temperature**2",
        "return 1.0",
        "T^2 is dropped",
    ),
    "adapter_scale": Mutation(
        "models/adapters.py",
        "change = layer.scaling[NAME] * (b @ a)",
        "change = b @ a",
        "adapters are merged without their scale",
    ),
    "adapter_alpha": Mutation(
        "models/adapters.py",
        "lora_alpha=settings.alpha,",
        "lora_alpha=settings.rank,",
        "adapters train at another scale",
    ),
    "base_trains": Mutation(
        "models/adapters.py",
        "        if name in fresh and not name.startswith(in_heads):",
        "        if not name.startswith(in_heads):",
        "the base trains with its adapters",
    ),
    "base_teacher": Mutation(
        "models/adapters.py",
        "        part._disable_adapters = True",
        "        part._disable_adapters = False",
        "a teacher that is the student's base reads its adapters",
    ),
    "direction": Mutation(
        "numerics/divergences.py",
        "return (teacher.probabilities * (teacher.logs - student.logs)).sum(-1)",
        "return (student.probabilities * (student.logs - teacher.logs)).sum(-1)",
        "KL(student || teacher) instead of KL(teacher || student)",
    ),
    "cross_entropy": Mutation(
        "numerics/divergences.py",
        "return (teacher.probabilities * (teacher.logs - student.logs)).sum(-1)",
        "return -(teacher.probabilities * student.logs).sum(-1)",
        "a cross-entropy in the place of the KL",
    ),
    "mask": Mutation(
        "numerics/losses.py",
        "return torch.where(keep, values, torch.zeros_like(values)).sum()",
        "return values.sum()",
        "padding and ignored labels are summed",
    ),
    "class_weights": Mutation(
        "numerics/losses.py",
        "smoothing * weighed.mean(-1)",
        "smoothing * F.log_softmax(logits.float(), dim=-1).mean(-1)",
        "label smoothing forgets the class weights",
    ),
    "token_types": Mutation(
        "data/loader.py",
        "types[row, start:end] = sample.token_types",
        "types[row, : len(own)] = 0",
        "the texts of a pair are of one type",
    ),
    "feature_mask": Mutation(
        "data/microbatch.py",
        "kept_rows(self.matched_tokens)",
        "kept_rows(self.attention_mask.bool())",
        "the token an empty row attends to is matched",
    ),
    "span_mask": Mutation(
        "numerics/losses.py",
        "return logits.float().masked_fill(~candidates.unsqueeze(1), NO_CANDIDATE)",
        "return logits.float()",
        "an answer may stand in the question and in the padding",
    ),
    "span_mask_of_teacher": Mutation(
        "models/predictions.py",
        "terms.prediction_sum(logits, teacher.outputs(batch), predicted",
        "terms.prediction_sum(logits, teacher.logits, predicted",
        "a teacher finds answers in the question and in the padding",
    ),
    "span_padding": Mutation(
        "data/loader.py",
        "    return [start + place for place in places]",
        "    return [*places]",
        "starts and ends of answers do not move with the padding on the left",
    ),
    "global_count": Mutation(
        "runtime/step_runner.py",
        "self._world.sum_on_host(counts)",
        "own = counts[: len(names)].clone()\n"
        "        self._world.sum_on_host(counts)\n"
        "        counts[: len(names)] = own",
        "each rank divides by its own count",
    ),
    "microbatch_count": Mutation(
        "runtime/zero_runner.py",
        "loss, totals = objective.loss(self.engine, here, counts)",
        "own = {name: one.float() for name, one in objective.counts(here).items()}\n"
        "            loss, totals = objective.loss(self.engine, here, own)\n"
        "            loss = loss / len(micro)",
        "a mean of the microbatches' means",
    ),
    "world_size": Mutation(
        "runtime/zero_runner.py",
        "self.engine.backward(loss * self._world.size,",
        "self.engine.backward(loss,",
        "DeepSpeed's average over ranks is not made up for",
    ),
    "accumulation": Mutation(
        "runtime/zero_runner.py",
        "scale_wrt_gas=False",
        "scale_wrt_gas=True",
        "DeepSpeed divides by the number of microbatches as well",
    ),
    "fixed_accumulation": Mutation(
        "runtime/zero_runner.py",
        "self.engine.set_gradient_accumulation_boundary(index == len(micro) - 1)",
        "pass",
        "DeepSpeed steps after the same number of microbatches each time",
    ),
    "filter_all_reduce": Mutation(
        "models/student.py",
        "        self.bank = bank\n",
        "        self.bank = bank\n"
        "        import torch.distributed as dist\n\n"
        "        alone = not dist.is_initialized() or dist.get_rank() == 0\n"
        "        for parameter in bank.parameters():\n"
        "            if parameter.requires_grad:\n"
        "                parameter.register_hook(lambda gradient: gradient * float(alone))\n",
        "filters learn from rank 0's data alone",
    ),
    "next_token": Mutation(
        "data/loader.py",
        "of_tokens[row, start : max(end - 1, start)] = ids[row, start + 1 : end]",
        "of_tokens[row, start:end] = ids[row, start:end]",
        "labels are not shifted",
    ),
    "boundary": Mutation(
        "data/loader.py",
        "            return sample.document_lengths\n",
        "            return (len(sample.input_ids),)\n",
        "packed documents are not kept apart",
    ),
    "leak": Mutation(
        "data/microbatch.py",
        "        if not self.isolated:\n",
        "        if True:\n",
        "packed documents see each other, though their positions start again",
    ),
    "left_positions": Mutation(
        "data/loader.py",
        'positions_differ = self.isolate_documents or self.side == "left"',
        "positions_differ = self.isolate_documents",
        "positions count the padding on the left",
    ),
    "completion_place": Mutation(
        "data/loader.py",
        "completes[row, max(end - len(own) + first - 1, 0) : end - len(own) + behind - 1] = True",
        "completes[row, end - len(own) + first : end - len(own) + behind] = True",
        "what follows each token of a completion is learned",
    ),
    "prompts": Mutation(
        "data/loader.py",
        "labels = np.where(completes, of_tokens, IGNORED_LABEL) if alone.task else of_tokens",
        "labels = of_tokens",
        "prompts are learned as completions are",
    ),
    "prompts_compared": Mutation(
        "data/microbatch.py",
        "return self.kept_tokens if self.matched is None else self.matched",
        "return self.kept_tokens",
        "layers are compared on prompts, too",
    ),
    "completions_packed": Mutation(
        "data/chat_data.py",
        "spans += [place + len(ids) for place in label]",
        "spans += [place for place in label]",
        "packed completions stand where each stood alone",
    ),
    "weights_stay": Mutation(
        "objectives/distill.py",
        "self._begun = self._plan.weights_at(step)",
        "self._begun = self._plan.weights_at(0)",
        "weights that change stay as they begin",
    ),
    "own_counts": Mutation(
        "objectives/distill.py",
        "return replace(weights, prediction=weights.prediction * of_task / of_prediction)",
        "return weights",
        "in one pass the prediction term is divided by the task's count",
    ),
    "rows_of_divergence": Mutation(
        "numerics/vocabulary.py",
        "of_divergence = of_each.predicted * of_divergence",
        "of_divergence = torch.ones_like(of_each.predicted) * of_divergence",
        "the gradient of the divergence reaches rows that it is not of",
    ),
    "rows_of_task": Mutation(
        "numerics/vocabulary.py",
        "of_task = of_each.labelled * of_task",
        "of_task = torch.ones_like(of_each.labelled) * of_task",
        "rows without a label learn token 0",
    ),
    "shared_ids": Mutation(
        "numerics/vocabulary.py",
        "own = student[:, : teacher.num_shared_ids]",
        "shared = student.shape[1] if theirs is None else min(student.shape[1], theirs.shape[1])\n"
        "        teacher = replace(teacher, num_shared_ids=shared)\n"
        "        own = student[:, : teacher.num_shared_ids]",
        "padded ids take part in the KL",
    ),
    "vocabulary_temperature": Mutation(
        "numerics/vocabulary.py",
        "of_divergence = teacher.weight / (self._job.unit * teacher.temperature)",
        "of_divergence = teacher.weight / self._job.unit",
        "the gradient of the chunked divergences is that of another temperature",
    ),
    "kernel_sum": Mutation(
        "numerics/triton_kernels.py",
        "(slope - tl.exp(log_q) * mean)",
        "slope",
        "the gradient of Triton's kernels forgets the sum over a row",
    ),
    "kernel_softmax": Mutation(
        "numerics/triton_kernels.py",
        "return new, total * tl.exp(largest - new) + ",
        "return new, total + ",
        "the norm of a softmax forgets that a later block had the largest logit",
    ),
    "reverse_kl": Mutation(
        "numerics/divergences.py",
        "teacher *= student.exp_()",
        "teacher *= student.exp_().neg()",
        "the reverse KL in place is taken the other way round",
    ),
    "jsd": Mutation(
        "numerics/divergences.py",
        "logs_beside_mixture(teacher.logs - student.logs, self.beta)",
        "logs_beside_mixture(teacher.logs - student.logs, 1 - self.beta)",
        "the mixture of the JSD has the two shares changed over",
    ),
    "skew_kl": Mutation(
        "numerics/divergences.py",
        "of_student.exp_().mul_(self.alpha - 1)",
        "of_student.exp_().mul_(-1)",
        "the gradient of the skewed KL forgets the student's share of the mixture",
    ),
    "skew_reverse_kl": Mutation(
        "numerics/divergences.py",
        "torch.sub(of_student, teacher, out=teacher).mul_(student)",
        "torch.mul(of_student, student, out=teacher)",
        "the gradient of the skewed reverse KL takes its mixture for given",
    ),
    "tv": Mutation(
        "numerics/divergences.py",
        "(teacher.probabilities - student.probabilities).abs().sum(-1) / 2",
        "(teacher.probabilities - student.probabilities).abs().amax(-1)",
        "the total variation is the largest difference",
    ),
    "bernoulli": Mutation(
        "numerics/losses.py",
        "both = (logits, -logits)",
        "both = (logits, logits)",
        "a label's no is taken for a second yes",
    ),
    "vocabulary_chunks": Mutation(
        "numerics/chunks.py",
        "beta=0 if is_first else 1",
        "beta=0",
        "the head learns from the last chunk alone",
    ),
    "vocabulary_unit": Mutation(
        "numerics/vocabulary.py",
        "scale = upstream * ctx.unit",
        "scale = upstream",
        "the chunked losses forget what their gradients were divided by",
    ),
    "fused_difference": Mutation(
        "numerics/fused.py",
        "difference.addmm_(teacher, teacher_weight.T, alpha=-1)",
        "difference.addmm_(teacher, teacher_weight.T)",
        "the layer-wise term is of a sum and not of a difference",
    ),
    "fused_mean": Mutation(
        "numerics/fused.py",
        "difference *= 2 / dim",
        "difference *= 2",
        "the gradient of the layer-wise term is that of a sum over dimensions",
    ),
    "drift": Mutation(
        "numerics/fused.py",
        "torch.linalg.vector_norm(difference, dim=1, dtype",
        "torch.linalg.vector_norm(difference, dtype",
        "the squares of the layer-wise term are added up one by one",
    ),
    "longest_chooses": Mutation(
        "models/positions.py",
        'highest = torch.zeros_like(position_ids).scatter_reduce(1, text, position_ids, reduce="amax")',
        "highest = torch.full_like(position_ids, int(position_ids.max()))",
        "the longest text of a batch chooses the positions of all",
    ),
    "last_id": Mutation(
        "models/taps.py",
        "return pool(logits, attention_mask_of(arguments), how=self.pooled_token, unread=unread)",
        'return pool(logits, arguments["input_ids"] != 1, how=self.pooled_token, unread=unread)',
        "a label is read at the last token that is no end token",
    ),
    "flash_borders": Mutation(
        "models/joined_rows.py",
        '**dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), documents.borders),',
        '**dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), documents.borders[[0, -1]]),',
        "flash attention takes isolated documents for one",
    ),
    "packed_window": Mutation(
        "models/document_attention.py",
        "dtype=torch.bool).tril().triu(1 - window)",
        "dtype=torch.bool).tril().triu(-window)",
        "a sliding window within documents is one token too wide",
    ),
    "first_layer": Mutation(
        "models/parts.py",
        "return modules if behind_first is None else [behind_first, *modules[1:]]",
        "return modules",
        "layer 1 is taken before DeBERTa's convolution",
    ),
    "transfer_label": Mutation(
        "data/transfer.py",
        "return [Example(first, None, *second)]",
        "return [Example(first, 0, *second)]",
        "transfer texts have a task term",
    ),
    "cache_side": Mutation(
        "teacher_cache/cached.py",
        'start = length - len(own) if self._side == "left" else 0',
        "start = 0",
        "cached states of left-padded rows stand at the padding",
    ),
    "cache_scale": Mutation(
        "teacher_cache/states.py",
        ".reshape(shape) * scales",
        ".reshape(shape).float()",
        "cached states of 8 bits go without their scales",
    ),
    "rest_of_kept": Mutation(
        "numerics/teacher_predictions.py",
        "out=scratch).scatter_(-1, ids, -torch.inf)",
        "out=scratch)",
        "what is kept of a prediction is in its rest, too",
    ),
    "start_of_draws": Mutation(
        "numerics/keeping.py",
        "bounds.sub_(starts[rows, None].double())",
        "bounds.sub_(0.5)",
        "all draws begin in the middle",
    ),
    "place_of_kept": Mutation(
        "teacher_cache/cached_tokens.py",
        "place = (asked.cumsum(0) - 1).clamp(min=0)",
        "place = torch.arange(len(asked)) % len(ids)",
        "kept predictions of completions stand at the first labels",
    ),
    "hole_in_lane": Mutation(
        "teacher_cache/questions.py",
        'if one["step"] <= whole',
        'if one["step"] <= steps',
        "filling goes on behind what is missing",
    ),
    "place_of_rows": Mutation(
        "teacher_cache/given_predictions.py",
        "places = row.start + tokens - shift",
        "places = row.start + tokens",
        "predictions in rows of other tools are of the token that stands there",
    ),
    "padding_of_rows": Mutation(
        "teacher_cache/given_predictions.py",
        "places = row.start + tokens - shift",
        "places = tokens - shift",
        "predictions in rows of other tools begin with the first token, whatever padding is before it",
    ),
    "unknown_rest": Mutation(
        "numerics/teacher_predictions.py",
        "if self.among_kept:",
        "if False:",
        "ids of which nothing is known have no probability",
    ),
    "unmasked_labels": Mutation(
        "data/masking.py",
        "labels[places] = tokens[places]",
        "labels[ordinary] = tokens[ordinary]",
        "tokens that a masked LM sees are predicted, too",
    ),
    "masked_specials": Mutation(
        "data/masking.py",
        "places = np.flatnonzero(ordinary & is_chosen[unit])",
        "places = np.flatnonzero(is_chosen[unit])",
        "special tokens are masked",
    ),
    "same_masks": Mutation(
        "data/stream/lane.py",
        '"masks of lane", self._lane, "step", self._step)',
        '"masks of lane", self._lane)',
        "the masks of all steps stand at the same places",
    ),
    "masks_by_chance": Mutation(
        "data/masking.py",
        "np.random.PCG64(hash_of(*words))",
        "np.random.PCG64()",
        "masks hang on more than what a sequence is called",
    ),
    "predicted_places": Mutation(
        "data/loader.py",
        '{"predicted": kept_tokens} if self.predict_all',
        '{"predicted": token_labels != IGNORED_LABEL} if self.predict_all',
        "predictions of a masked LM are compared at masked tokens, where all are asked for",
    ),
    "before_lm_head": Mutation(
        "models/taps.py",
        "hidden = module(hidden)",
        "pass",
        "a masked LM's head takes the states of its last block as they are",
    ),
    "bound_of_logits": Mutation(
        "numerics/logits.py",
        "products.div_(self.bound).tanh_().mul_(self.bound)",
        "products.clamp_(-self.bound, self.bound)",
        "logits are cut off at their bound in the chunked losses",
    ),
    "slope_of_bound": Mutation(
        "numerics/logits.py",
        "return products.mul_(products).sub_(1).div_(-self.divisor)",
        "return products.fill_(1 / self.divisor)",
        "the gradient of the chunked losses forgets the bound of logits",
    ),
    "divisor_of_logits": Mutation(
        "numerics/vocabulary.py",
        "if not self._job.rule.is_plain:",
        "if self._job.rule.bound is not None:",
        "the gradient of the chunked losses forgets what logits are divided by",
    ),
    "rule_of_teacher": Mutation(
        "models/predictions.py",
        "                teacher.head.rule,\n",
        "                self.head.rule,\n",
        "a teacher's logits are made by the student's rule",
    ),
    "factor_of_embeddings": Mutation(
        "models/partial.py",
        "setattr(model.get_submodule(parent), name, 1)",
        "pass",
        "the state that arrives at a pipeline stage is multiplied as embeddings are",
    ),
    "balance_of_batch": Mutation(
        "numerics/balance.py",
        "num_tokens * of_experts.shape[-1] * of_experts.sum(-1) / num_routed**2",
        "of_experts.shape[-1] * of_experts.sum(-1) / num_routed**2",
        "the routers' loss is not weighed by the tokens of its row",
    ),
    "balance_of_padding": Mutation(
        "numerics/balance.py",
        "probabilities.append((of_rows * weights).sum(1))",
        "probabilities.append(of_rows.sum(1))",
        "routers are balanced over padding, too",
    ),
    "balance_weight": Mutation(
        "objectives/finetune.py",
        "[Term(BALANCE, task.balance_weight,",
        "[Term(BALANCE, 1.0,",
        "the routers' loss weighs as much as the task's",
    ),
    "masks_of_documents": Mutation(
        "models/document_mask.py",
        "(document.unsqueeze(2) == document.unsqueeze(1)).tril()",
        "(document.unsqueeze(2) >= document.unsqueeze(1)).tril()",
        "documents see those before them where a model's own masks do not find them",
    ),
    "row_of_padding": Mutation(
        "models/positions.py",
        "return counted.cumsum(1) * counted + row_of_padding",
        "return counted.cumsum(1) * counted",
        "the first token of a RoBERTa stands in the first row of its table of positions",
    ),
    "passes": Mutation(
        "models/passes.py",
        "self._count += 1",
        "self._count += 0",
        "all layers that share a block are taken for its first one",
    ),
    "targets_shift": Mutation(
        "models/two_stacks.py",
        "return torch.cat([start, target_ids[:, :-1]], dim=1)",
        "return torch.cat([start, target_ids[:, 1:]], dim=1)",
        "a decoder reads the tokens it is to write",
    ),
    "decoder_taps": Mutation(
        "models/two_stacks.py",
        "for number, block in enumerate(blocks_of(model, stack), start=1)",
        "for number, block in enumerate(blocks_of(model, stack)[::-1], start=1)",
        "the layers of each stack are numbered from its end",
    ),
    "kept_targets": Mutation(
        "data/microbatch.py",
        "kept_rows(self.kept_targets)",
        "kept_rows(torch.ones_like(self.kept_targets))",
        "a decoder's states are matched on padding, too",
    ),
    "target_count": Mutation(
        "objectives/distill.py",
        "return batch.kept_targets.sum()",
        "return batch.matched_tokens.sum()",
        "a decoder's layer-wise term is divided by the tokens of the sources",
    ),
    "influence": Mutation(
        "numerics/importance.py",
        "cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=1)",
        "cosine = torch.nn.functional.cosine_similarity(before.double(), (after - before).double(), dim=1)",
        "a block's influence is of what it adds to its input, not of what it puts out",
    ),
    "narrow_norms": Mutation(
        "models/narrowing.py",
        "math.sqrt(before.hidden / after.hidden * share / num_tokens)",
        "math.sqrt(share / num_tokens)",
        "norms of a narrower student divide by the root of another mean square",
    ),
    "healed_factor": Mutation(
        "assembly/healing.py",
        "(goal[rows].double() - is_sum[rows].double()) / own.factor",
        "(goal[rows].double() - is_sum[rows].double())",
        "healing forgets what a block multiplies its map's output by",
    ),
    "healed_norm": Mutation(
        "assembly/healing.py",
        "                parameter.copy_(value)",
        "                parameter.copy_(parameter)",
        "the norm behind a healed map stays the student's own",
    ),
    "healed_padding": Mutation(
        "assembly/calibration.py",
        "return kept & rows.unsqueeze(1)",
        "return rows.unsqueeze(1).expand_as(kept)",
        "blocks are healed on padding, too",
    ),
    "solved_weights": Mutation(
        "assembly/filter_sums.py",
        "equations.add(x, y, inverse_mean_square(y))",
        "equations.add(x, y)",
        "filters are solved for the largest states",
    ),
    "solved_place": Mutation(
        "assembly/solved_filters.py",
        "target = read(last, model.tapped.pooled_token)",
        'target = read(last, "mean")',
        "filters are solved towards another token than a text is read at",
    ),
    "solved_ranks": Mutation(
        "assembly/filter_sums.py",
        "                world.sum(sums)",
        "                world.sum(sums.clone())",
        "filters are solved on the texts of rank 0 alone",
    ),
    "texts_counted": Mutation(
        "objectives/distill_texts.py",
        "    return batch.texts.sum()",
        "    return batch.kept_tokens.sum()",
        "layers are compared by texts and divided by the number of tokens",
    ),
    "texts_of_teacher": Mutation(
        "objectives/distill_texts.py",
        'teacher.of(batch.read_by("teacher"))',
        'student.of(batch.read_by("teacher"))',
        "a teacher's text is read at the place where the student's is",
    ),
    "mean_of_filtered": Mutation(
        "numerics/filters.py",
        'if pooling.how == "mean" and len(self.layers()) > 1:',
        "if len(self.layers()) < 0:",
        "a filter with a hidden layer is given the mean of a text's states",
    ),
}


def nearest_first(file: str) -> list[list[str]]:
    """TESTS in two runs: files that import the module, or start ranks where none does; and the others."""
    module = "ted_ds." + file.removesuffix(".py").replace("/", ".")
    package, _, name = module.rpartition(".")
    imports = re.compile(rf"\b{re.escape(module)}\b|from {re.escape(package)} import [^\n]*\b{name}\b")
    files = [path for test in TESTS for path in (sorted((ROOT / test).glob("test_*.py")) or [ROOT / test])]
    near = [path for path in files if imports.search(path.read_text(encoding="utf-8"))]
    near = near or [path for path in files if path.parent.name == "distributed"]
    far = [path for path in files if path not in near]
    return [[str(path.relative_to(ROOT)) for path in run] for run in (near, far)]


def survives(mutation: Mutation, folder: Path) -> str | None:
    """Why a mutation is not noticed; None when a test fails because of it."""
    for part in ("ted_ds", "tests", "ds_configs", "docs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    file = folder / "ted_ds" / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.right) != 1:
        return f"does not apply: {mutation.file} has {text.count(mutation.right)} times {mutation.right!r}"
    file.write_text(text.replace(mutation.right, mutation.wrong), encoding="utf-8")
    for tests in nearest_first(mutation.file):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", *tests],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            break
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if re.search(r"rank \d+ failed|^E +\w*Error(?<!AssertionError)", done.stdout, re.MULTILINE):
        return f"breaks instead of giving a wrong number:\n{done.stdout[-1500:]}"
    if done.returncode != 1 or failed is None:
        return f"survives: pytest ended with {done.returncode}\n{done.stdout[-500:]}"
    print(f"  first noticed by {failed[1]}")
    return None


def listed(names: Sequence[str]) -> int:
    """Those of the list above; the exit code."""
    survivors = []
    for name in names or MUTATIONS:
        print(f"{name}: {MUTATIONS[name].says}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            reason = survives(MUTATIONS[name], Path(folder))
        if reason is not None:
            print(f"  {reason}")
            survivors.append(name)
    print(f"survivors: {', '.join(survivors)}" if survivors else "every mutation was noticed")
    return 1 if survivors else 0


def make_table(file: Path) -> int:
    """Run the tests once, noting what each reaches; the exit code. Tests that fail are left out."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutants.reach", "--reach", str(file)]
    return subprocess.run([*command, *REACHING], cwd=ROOT, env={**os.environ, START: "fork"}, check=False).returncode


def at_random(number: int, seed: int, table: ReachTable, part: slice) -> int:
    """A sample of all mutants, or a part of it; the exit code."""
    mutants = sample(ROOT / "ted_ds", number, seed)[part]
    started, survivors = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in try_all(mutants, table, ROOT, Path(folder)):
            print(
                f"{'noticed ' if outcome.noticed else 'SURVIVES'} {outcome.mutant}\n         {outcome.by}", flush=True
            )
            survivors += [] if outcome.noticed else [outcome.mutant]
    print(
        f"{len(survivors)} of {len(mutants)} mutants survive, {len(survivors) / len(mutants):.1%} "
        f"({(time.monotonic() - started) / 60:.0f} min)"
    )
    for survivor in survivors:
        print(f"  {survivor}")
    return 1 if len(survivors) > MOST_SURVIVORS * len(mutants) else 0


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("names", nargs="*", help=f"of the list: {', '.join(MUTATIONS)}")
    parser.add_argument("--reach", type=Path, metavar="TABLE", help="which test reaches what; made where it is missing")
    parser.add_argument("--sample", type=int, metavar="N", help="so many mutants at random")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another sample for each (default: 0)")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="I", help="of the sample, counted from 0")
    parser.add_argument("--to", dest="last", type=int, metavar="J", help="and up to, without it")
    options = parser.parse_args()
    if options.sample is None and options.reach is None:
        return listed(options.names)
    if options.names or options.reach is None:
        parser.error("--sample goes with --reach TABLE, and not with names")
    if not options.reach.is_file():
        make_table(options.reach)
    if options.sample is None:
        return 0
    return at_random(options.sample, options.seed, ReachTable(options.reach), slice(options.first, options.last))


if __name__ == "__main__":
    sys.exit(main())
