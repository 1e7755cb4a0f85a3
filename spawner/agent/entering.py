"""What happens in a kernel before its command: dotfiles and the bootstrap script; one shell script for all engines.

Dotfiles are copied from the platform's files into the home folder. One that was changed there since it was last
copied stays as it is, with a sentence in the log. A bootstrap script that fails ends a batch session; any other
session goes on, so that people can look what is wrong.
"""

from __future__ import annotations

from spawner.agent.protocol import File, KernelSpec

PATH = "enter"
"""Where the script lies beneath ``/home/config``."""
DOTFILES = "dotfiles/"

SCRIPT = r"""#!/bin/sh
# enter [-b SCRIPT] [-s] -- COMMAND [ARGUMENT...]
set -u
config=${0%/*} script= strict=
while getopts b:s option; do
    case $option in b) script=$config/$OPTARG ;; s) strict=1 ;; *) exit 125 ;; esac
done
shift $((OPTIND - 1))
records=$HOME/.local/state/perijove/dotfiles
say() { printf 'perijove: %s\n' "$*" >&2; }

shown() { printf '%s ' "$(stat -c %a "$1")" && cksum <"$1"; }

place() {
    from=$config/dotfiles/$1 to=$HOME/$1 record=$records/$(printf %s "$1" | tr / %)
    new=$(shown "$from")
    if [ -e "$to" ] || [ -L "$to" ]; then
        [ -f "$to" ] || { say "~/$1 is no plain file and stays as it is"; return 0; }
        here=$(shown "$to")
        if [ "$here" = "$new" ]; then printf '%s\n' "$new" >"$record"; return 0; fi
        if [ "$here" != "$(cat "$record" 2>/dev/null)" ]; then
            say "~/$1 was changed here and stays as it is"
            return 0
        fi
    fi
    mkdir -p "$(dirname "$to")" && part=$(mktemp "$to.XXXXXX") && cp -p "$from" "$part" &&
        mv -f "$part" "$to" && printf '%s\n' "$new" >"$record"
}

if [ -d "$config/dotfiles" ]; then
    mkdir -p "$records"
    (cd "$config/dotfiles" && find . -type f) | while IFS= read -r path; do
        place "${path#./}" || say "~/${path#./} could not be written"
    done
fi
if [ -n "$script" ]; then
    say "running the bootstrap script"
    case $(head -c 2 "$script") in
    '#!') "$script" </dev/null ;;
    *) sh "$script" </dev/null ;;
    esac
    code=$?
    if [ "$code" != 0 ]; then
        say "the bootstrap script failed with status $code"
        [ -z "$strict" ] || exit "$code"
    fi
fi
exec "$@"
"""


def needed(spec: KernelSpec) -> bool:
    """Whether anything is to be done before the command."""
    return bool(spec.bootstrap) or any(file.path.startswith(DOTFILES) for file in spec.files)


def files(spec: KernelSpec) -> tuple[File, ...]:
    """The files of a kernel, with the script if it is needed."""
    return (*spec.files, File(PATH, SCRIPT, 0o500)) if needed(spec) else spec.files


def words(spec: KernelSpec, folder: str) -> tuple[str, ...]:
    """What stands before the command; ``folder`` is where the files are seen."""
    if not needed(spec):
        return ()
    bootstrap = ("-b", spec.bootstrap) if spec.bootstrap else ()
    strict = ("-s",) if spec.session_type == "batch" else ()
    return ("/bin/sh", f"{folder}/{PATH}", *bootstrap, *strict, "--")
