#!/usr/bin/env bash
# Two processes on this machine: what two shells, or two hosts, would each be told.
#
#   bash launch/two_shells.sh --config=configs/tiny.py --workdir=runs/two
#
# On two hosts: the address is one that both can reach, the workdir a folder that both see.
set -euo pipefail
address=127.0.0.1:${PORT:-$((20000 + RANDOM % 10000))}

python run.py --coordinator="$address" --num_processes=2 --process_id=0 "$@" &
first=$!
python run.py --coordinator="$address" --num_processes=2 --process_id=1 "$@" &
second=$!

code=0
wait $first || code=$?
wait $second || code=$?
exit $code
