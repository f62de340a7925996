"""The command `flashelmo info`."""

from __future__ import annotations

import json
from dataclasses import asdict

from flashelmo.cli.arguments import AnyModel, Json, Options
from flashelmo.cli.terminal import readable_size


def info(
    model: AnyModel,
    options: Options = None,
    as_json: Json = False,
) -> None:
    """Show a model's dimensions, parameters, format and sha256. Also lists faster precisions on this machine."""
    from flashelmo.engine.choice import faster_on_cpu
    from flashelmo.engine.model.checkpoints import load_model
    from flashelmo.engine.model.checkpoints.convert import describe
    from flashelmo.engine.system.processor import processor_name

    facts = describe(load_model(model, options))
    faster = [asdict(each) for each in faster_on_cpu()]
    facts["processor"] = {"name": processor_name(), "precision": "fp32", "faster": faster}
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    files, processor = facts.pop("files", []), facts.pop("processor")
    for name, value in facts.items():
        print(f"{name}: {f'{value:,}' if type(value) is int else value}")
    for file in files:
        print(f"{file['name']}: {readable_size(file['bytes'])}, sha256 {file['sha256']}")
    print(f"on this processor ({processor['name']}): {processor['precision']} by default, exact to rounding")
    for each in processor["faster"]:
        needs = f"; pip install '{each['needs']}'" if each["needs"] else ""
        print(
            f"possibly faster: --precision {each['precision']}, relative error below {each['relative_error']:g}{needs}"
        )
