"""Attaching experts to a base model: the tuner of the PEFT method, on PEFT's `BaseTuner`."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from clmoe.errors import ClmoeError
from clmoe.model.config import ClmoeConfig
from clmoe.model.layer import MixtureLinear, close_gates, open_gates
from clmoe.model.targets import TargetPlan, resolve_targets
from clmoe.model.tuner import PREFIX
from clmoe.model.whole import leave_originals, train_in_float32


class ClmoeModel(BaseTuner):  # type: ignore[misc]
    """A base model whose chosen linears carry LoRA experts."""

    prefix = PREFIX
    tuner_layer_cls = MixtureLinear
    target_module_mapping: dict[str, Any] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Find the linears and routers of an adapter, attach it, and hook the blocks it shares.

        Raises:
            ClmoeError: The targets match nothing, or the configuration was saved for a base model
                with other linears.
        """
        config: ClmoeConfig = self.peft_config[adapter_name]
        plan = resolve_targets(model, targets=config.targets, routers=config.routers)
        if config.router_of is not None and config.router_of != plan.router_of:
            _refuse_other_base(config.router_of, plan.router_of)
        config.router_of = plan.router_of
        self._plan: TargetPlan = plan
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            state_dict=state_dict,
        )
        train_in_float32(model, adapter_name=adapter_name)
        hooked = self.__dict__.setdefault("_hooks_of_block", {})
        for path in plan.blocks if config.experts > 1 else ():
            if path not in hooked:
                block = model.get_submodule(path)
                hooked[path] = (
                    block.register_forward_pre_hook(open_gates, with_kwargs=True),
                    block.register_forward_hook(close_gates, always_call=True),
                )

    def _prepare_adapter_config(self, peft_config: ClmoeConfig, model_config: Any) -> ClmoeConfig:
        return peft_config

    def _check_target_module_exists(self, peft_config: ClmoeConfig, key: str) -> bool:
        return key in self._plan.router_of

    def _create_and_replace(
        self,
        peft_config: ClmoeConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, MixtureLinear) else MixtureLinear(target)
        layer.update_layer(
            adapter_name,
            config=peft_config,
            path=current_key,
            router_width=self._plan.router_width.get(current_key),
        )
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's own also copies a `weight`, which whole modules such as a projector do not have.
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            raise ClmoeError(
                "a mixture cannot be folded into the base weights: its gate depends on each input",
                hint="keep the adapter beside the base model",
            )
        for handles in self.__dict__.pop("_hooks_of_block", {}).values():
            for handle in handles:
                handle.remove()
        leave_originals(self.model)
        unloaded: nn.Module = super()._unload_and_optionally_merge(merge=False, **kwargs)
        return unloaded


def _refuse_other_base(saved: dict[str, str], found: dict[str, str]) -> None:
    missing = sorted(set(saved) - set(found))
    extra = sorted(set(found) - set(saved))
    example = (missing or extra or [next(k for k in saved if saved[k] != found[k])])[0]
    raise ClmoeError(
        f"the adapter adapts {len(saved)} linears, this base model has {len(found)} that fit: "
        f"{len(missing)} are missing, {len(extra)} are not in the adapter (first: {example})",
        hint="load the adapter on the base model it was trained on",
    )
