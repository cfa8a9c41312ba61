#!/bin/bash
# Stand-in for the old restart, its agent part only. As the original it goes
# past the safe starter and writes no PID file.

here=$(dirname "$0")
agent="$VOICE_GUARD_AGENT_SCRIPT ${VOICE_GUARD_AGENT_MODE:-dev}"

count() {
    # shellcheck disable=SC2009
    ps aux | grep -F -- "$agent" | grep -v -c grep
}

before=$(count)
if [ "$before" -gt 1 ]; then
    echo "Removing $((before - 1)) duplicates"
fi
"$here/stop_voice_agent_safe.sh"

cd "$VOICE_GUARD_PROJECT_DIR" || exit 1
nohup "$VOICE_GUARD_PYTHON" "$VOICE_GUARD_AGENT_SCRIPT" "${VOICE_GUARD_AGENT_MODE:-dev}" \
    </dev/null >"$VOICE_GUARD_LOG_FILE" 2>&1 &

sleep "${OLD_STYLE_VERIFY_SECONDS:-3}"
after=$(count)
if [ "$after" -ne 1 ]; then
    echo "ERROR: $after voice agents are running, one was expected"
    exit 1
fi
echo "One voice agent is running"
exit 0
