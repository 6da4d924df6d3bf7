"""`gpukit doctor`: what this machine offers, what is missing and how to get it."""

from gpukit_cli.options import Json
from gpukit_cli.output import print_json


def doctor(json: Json = False) -> None:
    """Show versions, devices, compiler, store and disk, and what is missing."""
    from gpukit.recipes.doctor import diagnose
    from gpukit_cli.progress import human_bytes

    found = diagnose()
    if json:
        print_json(found.as_json())
        return
    rows = [("gpukit", f"{found.gpukit}, with the bytes of {found.matches}")]
    rows += [("python", found.python), ("system", found.system)]
    rows += [(name, version or "not installed") for name, version in found.libraries.items()]
    for device in found.devices:
        memory = f"{human_bytes(device.free)} free of {human_bytes(device.total)}"
        rows.append((device.name, f"{device.model}, {memory}"))
    free = "" if found.store_free is None else f", {human_bytes(found.store_free)} free"
    rows += [
        ("C compiler", found.compiler or "none"),
        ("CPU kernels", found.kernels),
        ("store", "none" if found.store is None else f"{found.store}{free}"),
        ("this folder", f"{human_bytes(found.scratch_free)} free"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    for line in found.advice:
        print(f"! {line}")
    if not found.advice:
        print("nothing is missing")
