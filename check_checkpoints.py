"""Are the published weights what they claim to be? Equal weights at different steps, missing steps, wrong runs.

    python check_checkpoints.py -c configs/check_160m.yml
    python check_checkpoints.py -c configs/ioi_160m.yml model=pythia-2.8b
    python check_checkpoints.py -c configs/check_toy.yml --deep

It takes the config of any script. From the hub's metadata alone (for a local family, from the files) it compares the
hashes of every file of weights, shard by shard, at all published steps and on `main`. A local family's checkpoints are
loaded too, to see that they can be measured. `--deep` also compares a few tensors of the steps in `checkpoints`, and
finds a checkpoint that does not descend from the one before.

Writes results/checks/<model>/checkpoints.csv, and with `--deep` distances.csv. Exit codes: 0 all well, 1 something is
wrong (0 with `on_duplicate_weights=warn` or `skip`), 2 bad input.
"""

import sys
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, model_validator

from circuits_over_time.utils.base.errors import suggest
from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.config.command_line import read_command_line, script
from circuits_over_time.utils.config.explain import all_keys
from circuits_over_time.utils.config.keys import BaseConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.suite import SuiteConfig, find_analysis
from circuits_over_time.utils.toy.keys import FamilyConfig


class CheckConfig(BaseConfig):
    """Keys of check_checkpoints.py: those that every script shares. The keys of other scripts are passed over."""

    @model_validator(mode="before")
    @classmethod
    def _pass_over_other_scripts_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.keys() <= cls.model_fields.keys():
            return data
        # Those of every script that reads a config; in blocks they are called as `eap.ig_steps`.
        schemas: list[type[BaseModel]] = [SuiteConfig, ComparisonConfig, FamilyConfig]
        schemas += [find_analysis(name).schema for name in {kind.script for kind in KINDS.values()}]
        known = {key for schema in schemas for key, _ in all_keys(schema)}
        for key in set(data) & known - cls.model_fields.keys():
            inside = sorted(name for name in known if name.rpartition(".")[0] == key)
            for name in data[key] if inside and isinstance(data[key], dict) else ():
                if (full := f"{key}.{name}") not in inside:
                    raise ValueError(f"{full}: unknown key{suggest(full, inside)}")
        return {key: value for key, value in data.items() if key in cls.model_fields or key not in known}


@script
def main(argv: Sequence[str] | None = None) -> int:
    deep = "also load a few tensors and compare consecutive steps"
    config, arguments = read_command_line("check_checkpoints.py", CheckConfig, argv, deep=deep)
    from circuits_over_time.utils.integrity.check import check_models  # Imports pandas.

    return check_models(config, deep=arguments.deep)


if __name__ == "__main__":
    sys.exit(main())
