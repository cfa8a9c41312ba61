#!/bin/bash
# Stand-in for the old stop of the whole system, its agent part only.

"$(dirname "$0")/stop_voice_agent_safe.sh"
