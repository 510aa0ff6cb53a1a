"""The command line: options and their help. What the commands do is in `up`, `get`, `plan` and `demo` beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lorafleet_operator import __version__
from lorafleet_operator.cli.dispatch import dispatch
from lorafleet_operator.cli.top_options import add_top_options
from lorafleet_operator.config import DEFAULT_HOST, DEFAULT_PORT

EXAMPLES = """\
examples:
  lorafleet up -f examples/quickstart      bring up the fleet that these files declare, serve until Ctrl-C
  lorafleet get loraadapters -n acme       what the running fleet holds, as kubectl would print it
  lorafleet get lorafleet -w               every object, and every change of them
  lorafleet top tenants                    who receives what, and who waits, as it happens
  lorafleet plan -f examples/quickstart    what `up` would do, and what is wrong with the files; does nothing
  lorafleet demo -f examples/quickstart    ask the base model and every adapter the same questions, side by side

Edit, add or remove the YAML files while the fleet runs: changes take effect within two seconds.
"""
FILES = "a YAML file, or a folder of them (not its subfolders); may be repeated"
STATE = "where the fleet keeps its state (default: $LORAFLEET_STATE_DIR, else ~/.local/state/lorafleet/default)"


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `module` names the module whose `run` is the command."""
    root = argparse.ArgumentParser(
        prog="lorafleet",
        description="Serve many LoRA adapters on shared base models, declared in YAML.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"lorafleet {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _up(_command(commands, "up", "bring the fleet up on this machine, and keep it as declared"))
    _get(_command(commands, "get", "print the objects of the running fleet"))
    add_top_options(_command(commands, "top", "show replicas as they work, or their tenants, until Ctrl-C"))
    _plan(_command(commands, "plan", "print what `up` would do, without doing it"))
    _demo(_command(commands, "demo", "bring the fleet up, ask it a few questions, print the answers"))
    _operator(_command(commands, "operator", "run the operator of a Kubernetes cluster"))
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 failed, 2 wrongly asked, 130 interrupted."""
    return dispatch(parser(), argv)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    described = text[0].upper() + text[1:] + "."
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=text, description=described, formatter_class=raw)
    command.set_defaults(module=f"lorafleet_operator.cli.{name}")
    command.add_argument("--state-dir", metavar="DIR", help=STATE)
    return command


def _serving(command: argparse.ArgumentParser) -> None:
    command.add_argument("-f", "--filename", metavar="PATH", action="append", required=True, help=FILES)
    command.add_argument("--host", default=DEFAULT_HOST, help="the address clients connect to (default: %(default)s)")
    command.add_argument("--port", type=int, default=DEFAULT_PORT, help="its TCP port (default: %(default)s)")
    command.add_argument(
        "--log-format", choices=("console", "json"), default="console",
        help="console: lines for people; json: one object a line, in the replicas' logs too (default: %(default)s)",
    )  # fmt: skip


def _up(command: argparse.ArgumentParser) -> None:
    _serving(command)
    command.epilog = (
        "Objects, Secrets included, are read from the files; Secrets stay in this process. The API is OpenAI's:\n"
        "  curl http://127.0.0.1:8080/v1/models -H 'Authorization: Bearer KEY'\n"
        "Ctrl-C ends the fleet in order; a second Ctrl-C ends it at once."
    )


def _get(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "kind", metavar="KIND", help="basemodels (bm), loraadapters (lad), tenants (ten), lorafleet (all)"
    )
    command.add_argument("name", metavar="NAME", nargs="?", help="one object only")
    command.add_argument("-n", "--namespace", help="of one namespace only (default: all of them)")
    command.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces, which is the default")
    command.add_argument("-o", "--output", choices=("table", "wide", "yaml", "json"), default="table")
    command.add_argument("-w", "--watch", action="store_true", help="go on, and print every change")


def _plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("-f", "--filename", metavar="PATH", action="append", required=True, help=FILES)
    command.epilog = (
        "Plans against the fleet that runs with this state folder, or against nothing when none runs.\n"
        "Exit status 1 when something is wrong with the files."
    )


def _demo(command: argparse.ArgumentParser) -> None:
    _serving(command)
    command.add_argument("--max-tokens", type=int, default=64, help="the length of an answer (default: %(default)s)")
    command.epilog = (
        "The questions are the lines of the annotation lorafleet.dev/demo-prompts on a BaseModel, or two of our own."
    )


def _operator(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--namespace", help="the operator's own: its Lease and the gateways' documents (default: $POD_NAMESPACE)")
    add("--watch-namespace", metavar="NAME", action="append", default=[], help="may be repeated (default: all)")
    add("--runtime-image", required=True, help="what replicas run when a BaseModel names no image")
    add("--image-pull-policy", choices=("IfNotPresent", "Always", "Never"), default="IfNotPresent")
    add(
        "--network-policy-release", metavar="NAME", default="",
        help="make a NetworkPolicy for each BaseModel: only this Helm release's gateways and operator reach its pods",
    )  # fmt: skip
    add(
        "--metrics-namespace-label", metavar="NAME=VALUE", action="append", default=[], type=_label,
        help="and scrapers in namespaces with this label; may be repeated",
    )  # fmt: skip
    add("--inference-pools", action="store_true", help="make an InferencePool of each BaseModel's pods")
    add("--endpoint-picker", metavar="NAME", default="", help="the Service that picks; {name}: the BaseModel's")
    add("--endpoint-picker-port", type=int, default=9002, help="its port (default: %(default)s)")
    add("--endpoint-picker-failure-mode", choices=("FailClose", "FailOpen"), default="FailClose")
    add(
        "--pool-gateway-namespace-label", metavar="NAME=VALUE", action="append", default=[], type=_label,
        help="with NetworkPolicies: gateways in namespaces with this label send to the pods; may be repeated",
    )  # fmt: skip
    add("--kubeconfig", help="default: $KUBECONFIG, else the pod's ServiceAccount, else ~/.kube/config")
    add("--metrics-port", type=int, default=9090, help="Prometheus metrics (default: %(default)s)")
    add("--health-port", type=int, default=8081, help="/healthz (default: %(default)s)")
    add("--webhook-port", type=int, help="serve the validating webhook, POST /validate, over TLS (default: not served)")
    add("--webhook-cert-dir", metavar="DIR", help="tls.crt and tls.key of the webhook, read again when they change")
    add("--log-format", choices=("console", "json"), default="json")
    command.epilog = (
        "LORAFLEET_SERVING_TOKEN and LORAFLEET_ADMIN_TOKEN hold what gateways and this operator call runtimes with;\n"
        "the chart makes both."
    )


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no label: write NAME=VALUE")
    return name, value
