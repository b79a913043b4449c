"""Fine-tuning of the target with DeepSpeed ZeRO: optimizer, gradients and weights in shards.

Data order, loss and schedule are those of `loop`; only the memory that holds the numbers differs.
ZeRO: Rajbhandari et al. (2020), arXiv:1910.02054.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from s2l_ray.config.training import TargetConfig
from s2l_ray.errors import ConfigError
from s2l_ray.models.adapters import adapter_of
from s2l_ray.models.checkpoints import load_model
from s2l_ray.training.batches import MicroBatch
from s2l_ray.training.loop import Update, batch_loss, summed_over_ranks, weight_groups
from s2l_ray.training.lora import add_adapters, merge_adapters

MASTER_WEIGHTS = (
    "single_partition_of_fp32_groups",
    "fp32_groups_flat_partition",
    "fp32_partitioned_groups_flat",
)
"""Names of a rank's flat float32 weights in the three optimizers of ZeRO."""


def load_target(config: TargetConfig, *, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Return the model to fine-tune, with adapters if `lora` is set; in shards for stage 3.

    Raises:
        ConfigError: `lora` is set and `peft` is not installed, or `cpu_offload` is set and its
            optimizer cannot be compiled.
    """
    if config.cpu_offload:
        compile_adamw()
    with _loaded_in_shards(config, dtype):
        model = load_model(config.model, dtype=dtype, seed=seed)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora is not None:
        add_adapters(model, config.lora, seed=seed)
    return model


@contextlib.contextmanager
def _loaded_in_shards(config: TargetConfig, dtype: torch.dtype) -> Iterator[None]:
    """For stage 3, let `from_pretrained` give every rank its shard of each weight in the block.

    A random or GGUF model is filled weight by weight, and an adapter is merged with whole weights:
    shards do not allow that. Such a model is loaded whole and partitioned afterwards.
    """
    spec = config.model
    is_folder = isinstance(spec, str) and not spec.endswith(".gguf")
    if config.zero_stage < 3 or not is_folder or adapter_of(spec) is not None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    _without_shared_memory_op()
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    # transformers partitions for as long as this object lives.
    marker = HfDeepSpeedConfig(engine_config(config, dtype))
    yield
    del marker


def engine_config(config: TargetConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the configuration in DeepSpeed's own format."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if config.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        # The loop accumulates by itself: the number of micro-batches may differ between steps.
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def _without_shared_memory_op() -> None:
    # On CPUs DeepSpeed compiles a C++ op (half a minute, needs g++ and ninja) that it uses for
    # tensor-parallel inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def compile_adamw() -> None:
    """Compile the C++ AdamW of ZeRO-Offload (arXiv:2101.06840), unless it is compiled already.

    Raises:
        ConfigError: it cannot be compiled here.
    """
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        CPUAdamBuilder().load()
    except Exception as error:
        raise ConfigError(
            f"target.cpu_offload needs DeepSpeed's C++ AdamW, which could not be compiled "
            f"({error}). Install g++ and ninja on the workers, or set cpu_offload: false."
        ) from error


class ZeroEngine:
    """One rank's shard of a model that learns."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: TargetConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        num_ranks: int,
    ) -> None:
        _without_shared_memory_op()
        self.device, self.num_ranks, self.lora = device, num_ranks, config.lora
        self.autocast = False  # the weights have the type to compute in
        self.offloaded = config.cpu_offload
        groups = weight_groups(model, config.weight_decay)
        make = DeepSpeedCPUAdam if self.offloaded else torch.optim.AdamW
        optimizer = make(groups, lr=config.learning_rate)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=engine_config(config, dtype)
        )
        self.stage = config.zero_stage
        self.model = model.train()
        self.forward: torch.nn.Module = self.engine

    def update(
        self, batches: Sequence[MicroBatch], *, learning_rate: float, num_response: int
    ) -> Update:
        """Make one optimizer step; see `loop.Engine`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss_sum = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, 1):
            self.engine.set_gradient_accumulation_boundary(number == len(batches))
            loss = batch_loss(self.engine, batch, device=self.device, autocast=self.autocast)
            # DeepSpeed divides by the number of ranks; by accumulation steps it would, too.
            self.engine.backward(loss * (self.num_ranks / num_response), scale_wrt_gas=False)
            self.engine.step()
            loss_sum += loss.detach()
        norm = float(self.engine.get_global_grad_norm())
        mean = summed_over_ranks(loss_sum, self.num_ranks) / num_response
        # DeepSpeed's norm of a gradient that is not finite is -1.
        return Update(mean, norm if norm >= 0 else math.nan)

    def save_shard(self, file: Path) -> None:
        """Write this rank's float32 weights and moments as safetensors."""
        tensors = {}
        for number, weight in enumerate(self._master_weights()):
            tensors[f"weight.{number}"] = weight.detach()
            for key, value in self.optimizer.optimizer.state[weight].items():
                tensors[f"{key}.{number}"] = torch.as_tensor(value)
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, file)

    def load_shard(self, file: Path) -> None:
        """Restore the state of `save_shard`; the number of ranks must be the same."""
        tensors = load_file(file)
        for number, weight in enumerate(self._master_weights()):
            weight.data.copy_(tensors[f"weight.{number}"])
            step = tensors[f"step.{number}"]
            moments = {
                key: tensors[f"{key}.{number}"].to(weight.device)
                for key in ("exp_avg", "exp_avg_sq")
            }
            self.optimizer.optimizer.state[weight] = {
                "step": int(step) if self.offloaded else step,
                **moments,
            }
        if self.offloaded:
            self._repeat_powers_of_beta(int(tensors["step.0"]))
        self._refresh_model()

    def _repeat_powers_of_beta(self, num_steps: int) -> None:
        """Bring the C++ AdamW into its state after `num_steps` updates.

        It multiplies beta^step by beta at every step, rounded each time. That product cannot be
        set; it can only be repeated, here by updates of a single number that is thrown away.
        """
        adam = self.optimizer.optimizer
        group = adam.param_groups[0]
        rest = [*group["betas"], group["eps"], group["weight_decay"], group["bias_correction"]]
        number = [torch.zeros(1) for _ in ("weight", "gradient", "first moment", "second moment")]
        for step in range(1, num_steps + 1):
            adam.ds_opt_adam.adam_update(adam.opt_id, step, group["lr"], *rest, *number)

    def _master_weights(self) -> list[torch.Tensor]:
        return next(
            list(getattr(self.optimizer, name))
            for name in MASTER_WEIGHTS
            if hasattr(self.optimizer, name)
        )

    def _refresh_model(self) -> None:
        """Copy the float32 weights into the model, as the end of an update does."""
        if self.stage < 3:
            self.optimizer.update_lp_params()
            return
        self.optimizer.checkpoint_event_prologue()
        for number in range(len(self.optimizer.fp32_partitioned_groups_flat)):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(number)
        self.optimizer.checkpoint_event_epilogue()

    def gather_weights(self, rank: int) -> dict[str, torch.Tensor]:
        """Return all weights on the CPU of rank 0, adapters merged; nothing on the other ranks."""
        weights = {}
        for name, weight in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([weight], enabled=self.stage == 3):
                if rank == 0:
                    weights[name] = weight.detach().to("cpu", copy=True)
        if rank == 0:
            persistent = self.model.state_dict().keys()
            buffers = self.model.named_buffers()
            weights.update({name: b.cpu() for name, b in buffers if name in persistent})
        return weights if self.lora is None else merge_adapters(weights, self.model, self.lora)
