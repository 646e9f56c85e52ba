"""Makes a process ignore one name, `MUTED=KIND:NAME`: whatever is set, the code reads the default.

Python imports this by itself at start where the folder is on PYTHONPATH, so worker processes ignore the name too.
"""

import importlib.abc
import importlib.util
import os
import pathlib
import sys

KIND, _, NAME = os.environ["MUTED"].partition(":")


def constant(value):
    return property(lambda self: value, lambda self, ignored: None)


def mute_setting(module):
    group, _, part = NAME.rpartition(".")
    owner = module.Settings.model_fields[group].annotation if group else module.Settings
    fields = owner.__pydantic_fields__
    setattr(owner, part, constant(fields[part].default))


def mute_key(module):
    tables = {"providers": "Provider", "models": "Model", "routes": "Route"}
    table, _, key = NAME.partition(".")
    owner = getattr(module, tables.get(table, table.capitalize()))
    required = {"providers.base_url": "http://127.0.0.1:1/v1", "models.provider": "openai"}
    if NAME in ("models.limits", "models.timeout"):  # the provider's hold, which a model is given when it is made
        inherit(module, key)
    elif NAME == "models.upstream":
        owner.upstream = property(lambda self: self.name, lambda self, ignored: None)
    else:
        setattr(owner, key, constant(required.get(NAME, owner.model_fields[key].default)))


def inherit(package, key):
    module = package.catalog
    with_providers = module._with_providers

    def always(model, provider):
        model = with_providers(model, provider)
        return model.model_copy(update={key: getattr(provider, key)}) if provider else model

    module._with_providers = always


def mute_in_client(module):
    real = module._options
    module._options = lambda given: real({name: value for name, value in given.items() if name != NAME})


def mute_in_worker(module):
    field = {"deadline_s": "deadline_at"}.get(NAME, NAME)
    if field in module.Options.__dataclass_fields__:
        default = module.Options.__dataclass_fields__[field].default
        setattr(module.Options, field, constant(default))


def mute_run_option(module):
    fields = module.RunOptions.__dataclass_fields__
    if NAME == "input_file":
        module.RunOptions.input = constant(pathlib.Path(os.devnull))
    elif NAME in fields:
        setattr(module.RunOptions, NAME, constant(fields[NAME].default))


def mute_simulation(module):
    field = {"fault": "faults"}.get(NAME, NAME)
    if field in module.Simulation.__dataclass_fields__:
        setattr(module.Simulation, field, constant(module.Simulation.__dataclass_fields__[field].default))


def mute_command(module):
    if NAME == "as_json":
        real = module._show
        module._show = lambda *args, as_json: real(*args, as_json=False)
    elif NAME == "simulate":
        real_asked = module._asked_for
        module._asked_for = lambda simulation, simulate: real_asked(module.Simulation(), simulate=False)


PATCHES = {
    "setting": {"config.settings": mute_setting},
    "catalog": {"config.catalog": mute_key},
    "option": {"tasks.wire.request": mute_in_client, "workers.prompt.job": mute_in_worker},
    "run": {
        "workers.commands.run.options": mute_run_option,
        "workers.commands.run.processes.simulation": mute_simulation,
        "workers.commands.run.command": mute_command,
    },
}[KIND]


class Muting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def execute_and_mute(module):
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = execute_and_mute
        return spec


sys.meta_path.insert(0, Muting())
