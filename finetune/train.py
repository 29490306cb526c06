"""The run: build everything in the order in which it is needed, then the loop. Start reading here."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from finetune.checkpoint.export import build_pipeline, export
from finetune.checkpoint.resume import check_identity, identity, package_versions
from finetune.checkpoint.store import CheckpointStore
from finetune.config import Config, accumulation, resolved
from finetune.data.index import Index
from finetune.data.loader import Batch, LatentShape, MicroBatches, open_loader
from finetune.data.plan import Plan
from finetune.data.prepare import build_plan
from finetune.data.source import ShardSource
from finetune.diffusion.objective import Objective
from finetune.distributed import Distributed
from finetune.model.assemble import Trainee
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer
from finetune.monitor.watch import open_watch
from finetune.optim.optimizers import build_optimizer
from finetune.phases import Phases, trains_text_encoder
from finetune.step import TrainingStep
