#!/bin/bash
# Stand-in for the old check: 0 if it is safe to start, otherwise 1.

pid_file=$VOICE_GUARD_PID_FILE
lock_file=$VOICE_GUARD_LOCK_FILE
agent="$VOICE_GUARD_AGENT_SCRIPT ${VOICE_GUARD_AGENT_MODE:-dev}"

# As the old scripts do it, and with what is wrong about it: any line will do.
# shellcheck disable=SC2009
running=$(ps aux | grep -F -- "$agent" | grep -v -c grep)
if [ "$running" -gt 0 ]; then
    echo "Voice agent is running already ($running processes)"
    exit 1
fi

if [ -f "$pid_file" ]; then
    pid=$(cat "$pid_file")
    if ps -p "$pid" >/dev/null 2>&1; then
        echo "Voice agent is running already (PID $pid)"
        exit 1
    fi
    echo "Removing a stale PID file"
    rm -f "$pid_file"
fi

if [ -f "$lock_file" ]; then
    age=$(($(date +%s) - $(stat -c %Y "$lock_file" 2>/dev/null || echo 0)))
    if [ "$age" -lt 30 ]; then
        echo "A start is in progress (lock is $age s old)"
        exit 1
    fi
    echo "Removing a stale lock"
    rm -f "$lock_file"
fi

echo "Safe to start"
exit 0
