#!/bin/bash
# Stand-in for the old system start, its agent part only: none -> start it,
# one -> keep it, several -> end them all and start one.

here=$(dirname "$0")
agent="$VOICE_GUARD_AGENT_SCRIPT ${VOICE_GUARD_AGENT_MODE:-dev}"

# shellcheck disable=SC2009
running=$(ps aux | grep -F -- "$agent" | grep -v -c grep)
if [ "$running" -eq 1 ]; then
    echo "Voice agent is running already"
    exit 0
fi
if [ "$running" -gt 1 ]; then
    echo "WARNING: $running voice agents are running; ending them all"
    "$here/stop_voice_agent_safe.sh"
fi
"$here/start_voice_agent_safe.sh" || exit 1
exit 0
