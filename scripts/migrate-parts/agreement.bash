#!/bin/bash
# Do the originals and the programs mean the same files and the same agent?
# Part of scripts/migrate, which sources it.
# shellcheck disable=SC2154  # dir is scripts/migrate's

declare -a SIDES=()        # what each side uses, in lines for a person
declare -a DISAGREEMENTS=() # originals that are in use and mean something else
declare -a DIFFERENCES=()   # originals that are kept and meant something else

# What the programs use (see the README's table of settings).
declare -A PROGRAMS_USE=()

# What one script uses, by reading it: values of setting NAME, one a line.
declare -A SCRIPT_USES=()
# What cannot be read out of it: why, by setting.
declare -A SCRIPT_HIDES=()
declare -rA NOUN=([pid]='PID file' [lock]='startup lock' [log]='log' [script]='agent')

# compare_sides: reads the scripts of dir, those in use and those kept.
compare_sides() {
    SIDES=() DISAGREEMENTS=() DIFFERENCES=()
    local name file words setting in_use=0 seen='' unseen=''
    what_programs_use
    SIDES+=("The programs use: $(in_words "${PROGRAMS_USE[pid]}" "${PROGRAMS_USE[lock]}" "${PROGRAMS_USE[log]}" "${PROGRAMS_USE[script]} ${PROGRAMS_USE[mode]}")")
    for name in "${NAMES_OF_SCRIPTS[@]}"; do
        for file in "$name.sh" "$name.sh.orig"; do
            look "$dir/$file" "$name"
            [[ $KIND == original ]] || continue
            what_script_uses "$dir/$file" "$name.sh"
            words=$(in_words "${SCRIPT_USES[pid]}" "${SCRIPT_USES[lock]}" "${SCRIPT_USES[log]}" "${SCRIPT_USES[script]}")
            [[ -z $words ]] || SIDES+=("$file uses: $words")
            compare_with "$file"
            for setting in pid lock log; do
                [[ ! -v SCRIPT_HIDES[$setting] ]] ||
                    SIDES+=("$file: its ${NOUN[$setting]} cannot be read out of it (${SCRIPT_HIDES[$setting]})")
            done
            [[ $file != *.orig ]] || continue
            ((in_use += 1))
            for setting in pid lock script; do
                [[ -z ${SCRIPT_USES[$setting]} ]] || seen+=" $setting"
            done
            ((${#SCRIPT_HIDES[@]} == 0)) || unseen=yes
        done
    done
    ((in_use > 0 && ${#DISAGREEMENTS[@]} == 0)) || return 0
    # What both must know each other by.
    words=
    for setting in pid lock script; do
        [[ " $seen " == *" $setting "* ]] || words+="${words:+, }${NOUN[$setting]}"
    done
    if [[ $words == 'PID file, startup lock, agent' ]]; then
        SIDES+=('What the originals use cannot be read out of them.')
    elif [[ -n $words ]]; then
        SIDES+=("What could be read agrees; no original says: $words.")
    elif [[ -n $unseen ]]; then
        SIDES+=('What could be read agrees.')
    else
        SIDES+=('The two sides agree.')
    fi
}

in_words() { # PID LOCK LOG AGENT
    local text='' each
    for each in "$@"; do
        [[ -z $each ]] || text+="${text:+, }${each//$'\n'/ and }"
    done
    printf '%s' "$text"
}

# compare_with FILE: SCRIPT_USES beside PROGRAMS_USE.
compare_with() {
    local file=$1 setting value text
    local -A variable=([pid]=PID_FILE [lock]=LOCK_FILE [log]=LOG_FILE)
    for setting in pid lock log; do
        [[ ${PROGRAMS_USE[$setting]} != *\$\{* ]] || continue
        value=${SCRIPT_USES[$setting]}
        [[ -n $value && $'\n'$value$'\n' != *$'\n'"${PROGRAMS_USE[$setting]}"$'\n'* ]] || continue
        value=${value%%$'\n'*}
        text="${NOUN[$setting]}: $file uses $(shown "$value"), the programs use $(shown "${PROGRAMS_USE[$setting]}"). "
        text+="Set VOICE_GUARD_${variable[$setting]}=$(shown "$value") for them, or scripts/migrate import"
        disagree "$file" "$text"
    done
    value=${SCRIPT_USES[script]%%$'\n'*}
    [[ -n $value ]] || return 0
    text="agent: $file runs $(shown "${value% *}"), the programs run $(shown "${PROGRAMS_USE[script]}")"
    local remedy
    remedy="Set VOICE_GUARD_AGENT_SCRIPT=$(shown "${value% *}") for them, or scripts/migrate import"
    if [[ $(family_of "${value% *}") != "$(family_of "${PROGRAMS_USE[script]}")" ]]; then
        disagree "$file" "$text: neither sees the other's. $remedy"
    elif [[ ${value##*/} != "${PROGRAMS_USE[script]##*/} "* ]]; then
        disagree "$file" "$text. $remedy"
    elif [[ ${value##* } != "${PROGRAMS_USE[mode]}" ]]; then
        disagree "$file" "agent: $file runs it in mode ${value##* }, the programs in mode ${PROGRAMS_USE[mode]}. Set VOICE_GUARD_AGENT_MODE=${value##* } for them, or scripts/migrate import"
    fi
}

disagree() { # FILE TEXT
    if [[ $1 == *.orig ]]; then DIFFERENCES+=("$2"); else DISAGREEMENTS+=("$2"); fi
}

# family_of SCRIPT: the programs treat scripts of one family as one agent.
family_of() {
    local stem=${1##*/}
    stem=${stem%.*}
    case $stem in letta_voice_agent_*) stem=letta_voice_agent ;; esac
    printf '%s' "$stem"
}

what_programs_use() {
    local family
    what_is_the_project
    PROGRAMS_USE=([script]=$(setting AGENT_SCRIPT script letta_voice_agent.py) [mode]=$(setting AGENT_MODE mode dev))
    family=$(family_of "${PROGRAMS_USE[script]}")
    PROGRAMS_USE[pid]=$(setting PID_FILE pid_file "/tmp/$family.pid")
    PROGRAMS_USE[lock]=$(setting LOCK_FILE lock_file "/tmp/$family.lock")
    if [[ $family == letta_voice_agent ]]; then family=voice_agent; fi
    PROGRAMS_USE[log]=$(setting LOG_FILE log "/tmp/$family.log")
    local each
    for each in pid lock log; do
        case ${PROGRAMS_USE[$each]} in
            /*) ;;
            *\$\{*) DISAGREEMENTS+=("${NOUN[$each]}: the configuration says ${PROGRAMS_USE[$each]}, and a variable of it is not set here: the programs stop at such a line") ;;
            *) PROGRAMS_USE[$each]=$project/${PROGRAMS_USE[$each]} ;;
        esac
    done
}

# what_is_the_project: sets project, the folder that the programs act on when they
# are called in dir and this environment.
what_is_the_project() {
    project=$dir
    [[ -n ${VOICE_GUARD_PROJECT_DIR-} ]] || return 0
    if [[ ! -d $VOICE_GUARD_PROJECT_DIR ]]; then
        DISAGREEMENTS+=("project folder: VOICE_GUARD_PROJECT_DIR is $(shown "$VOICE_GUARD_PROJECT_DIR"), which is no folder: the programs stop")
        return
    fi
    project=$(CDPATH='' cd -- "$VOICE_GUARD_PROJECT_DIR" && pwd && printf x)
    project=${project%$'\nx'}
    [[ $project -ef $dir ]] ||
        SIDES+=("The programs act on the project in $(shown "$project"), as VOICE_GUARD_PROJECT_DIR says.")
}

# setting VARIABLE KEY DEFAULT: environment, then configuration file, then default.
setting() {
    local name=VOICE_GUARD_$1 key=$2 file line section=''
    if [[ -n ${!name-} ]]; then
        printf '%s' "${!name}"
        return
    fi
    # The first that is there, as the programs look for it.
    for file in ${VOICE_GUARD_CONFIG:+"$VOICE_GUARD_CONFIG"} "$project" \
        "${XDG_CONFIG_HOME:-${HOME-}/.config}/voice-guard" /etc/voice-guard; do
        [[ $file == /* ]] || file=$project/$file
        [[ ! -d $file ]] || file+=/voice-system.toml
        [[ ! -f $file ]] || break
    done
    if [[ -f $file && -r $file ]]; then
        while IFS= read -r line || [[ -n $line ]]; do
            if [[ $line =~ ^[[:space:]]*\[([^]]*) ]]; then
                section=${BASH_REMATCH[1]}
            elif [[ $section == agent && $line =~ ^[[:space:]]*${key}[[:space:]]*=[[:space:]]*(\"([^\"]*)\"|\'([^\']*)\') ]]; then
                # shellcheck disable=SC2034  # read by parse_quoted: no script is being read
                VARIABLES=()
                parse_quoted "${BASH_REMATCH[2]}${BASH_REMATCH[3]}"
                # shellcheck disable=SC2153  # set by parse_quoted
                if is_unset_in "$WORD"; then
                    # As it stands there: nobody knows what it comes to.
                    line=${WORD//"$FROM_ENV"/\$\{}
                    printf '%s' "${line//"$END_ENV"/\}}"
                    return
                fi
                in_environment "$WORD"
                printf '%s' "$IN_ENVIRONMENT"
                return
            fi
        done <"$file"
    fi
    printf '%s' "$3"
}

# what_script_uses FILE SCRIPT: its files and its agent, from its assignments
# and from the names that stand in its lines.
what_script_uses() {
    local file=$1 script=$2 line at each
    SCRIPT_USES=([pid]='' [lock]='' [log]='' [script]='') SCRIPT_HIDES=()
    forget_assignments
    read_assignments "$file" "$script"
    for at in "${!ASSIGNED_NAME[@]}"; do
        role_of "${ASSIGNED_NAME[at]}" "$script"
        case $ROLE in
            pid_file) each=pid ;;
            lock_file) each=lock ;;
            log) each=log ;;
            *) continue ;;
        esac
        if [[ -n ${ASSIGNED_WHY_NOT[at]} ]]; then
            SCRIPT_HIDES[$each]=${ASSIGNED_WHY_NOT[at]}
        else
            uses "$each" "${ASSIGNED_VALUE[at]}"
        fi
    done
    read_lines "$file"
    for line in "${SCRIPT_LINE[@]}"; do
        if agent_in_line "$line"; then uses script "$AGENT_SCRIPT $AGENT_MODE"; fi
        # The two that care for a whole system name other parts' files as well.
        [[ $script != *_system.sh ]] || continue
        for each in pid lock log; do
            local name="[.]$each"
            [[ $each != log ]] || name="voice_agent[.]log"
            # Patterns cost nothing, and each expression is compiled anew.
            [[ $line == *".$each"* && $line =~ ^(.*[][:space:]\"\'\<\>=\;\|\&\(\)[])?([^][:space:]\"\'\<\>=\;\|\&\(\)[]*$name)([^[:alnum:]_]|$) ]] || continue
            # Only where a word begins: "$(f)/x.pid" and "$d"/x.pid are no /x.pid.
            local before=${BASH_REMATCH[1]}
            at=${BASH_REMATCH[2]}
            [[ ! $before =~ (^|[[:space:]=\<\>\;\|\&\(])[\"\']$ ]] || before=
            [[ -z $before || $before == *[[:space:]=\<\>\;\|\&\(] ]] || continue
            parse_word "$at"
            [[ -n $WHY_NOT ]] || uses "$each" "$WORD"
        done
    done
}

uses() { # SETTING VALUE
    if is_unset_in "$2"; then
        SCRIPT_HIDES[$1]="$UNSET is not set here"
        return
    fi
    in_environment "$2"
    [[ -n $IN_ENVIRONMENT ]] || return 0
    [[ $'\n'${SCRIPT_USES[$1]}$'\n' == *$'\n'"$IN_ENVIRONMENT"$'\n'* ]] ||
        SCRIPT_USES[$1]+=${SCRIPT_USES[$1]:+$'\n'}$IN_ENVIRONMENT
}

# agent_in_line LINE: does it name an agent script and its mode? Sets AGENT_SCRIPT
# and AGENT_MODE.
agent_in_line() {
    local line=$1
    [[ $line == *dev* || $line == *start* || $line == *connect* ]] || return 1
    local word='([^][:space:]"'\''<>=;|&()[]*\.py|\$\{?[A-Za-z_][A-Za-z0-9_]*\}?)'
    [[ $line =~ ${word}[\"\']?[[:space:]]+[\"\']?(dev|start|connect)([^[:alnum:]_.-]|$) ]] || return 1
    AGENT_MODE=${BASH_REMATCH[2]}
    parse_word "${BASH_REMATCH[1]}"
    in_environment "$WORD"
    AGENT_SCRIPT=$IN_ENVIRONMENT
    [[ -z $WHY_NOT && $AGENT_SCRIPT == *.py && $AGENT_SCRIPT != *' '* ]]
}
