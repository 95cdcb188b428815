#!/usr/bin/env bash
# Snapshots, a verification or a restore by Hadoop streaming on YARN: imgsnap makes the plan, a map task without reducers does each task, and
# imgsnap joins what they made (docs/fleets.md).
#
#     imgsnap-streaming.sh [-D NAME=VALUE]... --repo REPO [OPTION of imgsnap plan...] IMAGE...
#     imgsnap-streaming.sh [-D NAME=VALUE]... --repo REPO --verify
#     imgsnap-streaming.sh [-D NAME=VALUE]... --repo REPO --restore REF -o FILE
#     imgsnap-streaming.sh [-D NAME=VALUE]... --repo REPO --finish PLAN       what is left of a plan
#
# IMGSNAP names the program, which is shipped to the nodes and must run there; HDFS and MAPRED the commands of Hadoop; WORK a folder in HDFS
# for the list of tasks. Credentials and keys come to the nodes by files that are there with mode 0600, or by the user's own settings of
# Hadoop, not by this script: what -cmdenv is given stands in the history of jobs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=${IMGSNAP:-$(command -v imgsnap)} hdfs=${HDFS:-hdfs} mapred=${MAPRED:-mapred} work=${WORK:-/tmp/imgsnap-$(id -un)}
options=() repo='' plan=''
while [ $# -gt 0 ]; do
    case $1 in
    -D) options+=(-D "$2") && shift 2 ;;
    --repo) repo=$2 && shift 2 ;;
    --finish) plan=$2 && shift 2 ;;
    *) break ;;
    esac
done
[ -n "$repo" ] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
failed=0
if [ -z "$plan" ]; then
    planned=$("$program" --repo "$repo" plan "$@") || failed=$?
    printf '%s\n' "$planned"
    plan=$(printf '%s\n' "$planned" | sed -n 's/^plan \([0-9a-f-]*\): [0-9,]* tasks\{0,1\}$/\1/p')
    # Nothing has changed, or nothing can be planned.
    [ -n "$plan" ] || exit "$failed"
fi
list=$(mktemp) && trap 'rm -f "$list"' EXIT
# The largest first, as they are numbered; what is done is left out.
"$program" --repo "$repo" plan show "$plan" |
    awk -v plan="$plan" '$1 ~ /^[0-9]+$/ && $NF != "done" { print plan, $1 }' >"$list"
name=$work/$plan.$(date +%s).$$
if [ -s "$list" ]; then
    "$hdfs" dfs -mkdir -p "$work"
    "$hdfs" dfs -put "$list" "$name"
    # Two tries at one task do no harm, but a straggler is no reason for one: the program says how far it is.
    "$mapred" streaming -D mapreduce.job.name="imgsnap $plan" -D mapreduce.job.reduces=0 -D mapreduce.map.speculative=false \
        -D mapreduce.input.lineinputformat.linespermap=1 -D stream.map.input.ignoreKey=true "${options[@]}" \
        -files "$program#imgsnap,$here/imgsnap-task.sh" -inputformat org.apache.hadoop.mapred.lib.NLineInputFormat \
        -input "$name" -output "$name.out" -mapper imgsnap-task.sh -cmdenv IMGSNAP_REPO="$repo" || failed=1
    "$hdfs" dfs -rm -r -f -skipTrash "$name" "$name.out" || true
fi
# Whole images are joined, whatever became of the others.
"$program" --repo "$repo" join "$plan" || exit $?
exit "$failed"
