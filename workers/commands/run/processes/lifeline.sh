#!/bin/sh
# lifeline.sh: ends the processes of a run when the run itself is gone, however it went.
#
# stdin   a pipe whose only lasting writer is `promptmill run`; a line for each change:
#           add worker PID     PID leads a process group that is to be stopped first
#           add server PID     ... stopped once the workers are gone, because those write their results to it
#           drop worker PID    that process has ended (its number may belong to somebody else by now)
# $1      seconds that each kind is given between TERM and KILL
#
# The end of the pipe means that its writer has ended: the kernel closes it after a kill -9 too.

trap '' HUP INT TERM

grace_s=$1
workers=
servers=

without() {
    kept=
    for group in $1; do
        [ "$group" = "$2" ] || kept="$kept $group"
    done
    printf '%s' "$kept"
}

signal() {
    for group in $2; do
        kill -s "$1" -- "-$group" 2>/dev/null
    done
}

any_left() {
    for group in $1; do
        kill -s 0 -- "-$group" 2>/dev/null && return 0
    done
    return 1
}

stop() {
    signal TERM "$1"
    waits=$((grace_s * 10))
    while [ "$waits" -gt 0 ] && any_left "$1"; do
        waits=$((waits - 1))
        sleep 0.1
    done
    signal KILL "$1"
}

while read -r change kind pid; do
    case "$change $kind" in
        'add worker') workers="$workers $pid" ;;
        'add server') servers="$servers $pid" ;;
        'drop worker') workers=$(without "$workers" "$pid") ;;
        'drop server') servers=$(without "$servers" "$pid") ;;
    esac
done

stop "$workers"
stop "$servers"
