#!/bin/bash
# Finds who runs one of the scripts in a way that a link to a program does not
# stand: by a shell (`bash x.sh`), by sourcing it, or through a link of one's own.
# Part of scripts/migrate, which sources it.

# What find_callers has found, one entry for each line.
declare -a CALLER_SCRIPT=() # the script that is called
declare -a CALLER_PLACE=()  # FILE:LINE
declare -a CALLER_TEXT=()   # the line
declare -a CALLER_HOW=()    # "runs it with a shell", ...

# Folders that hold other people's files, by the thousand.
declare -ra NOT_LOOKED_INTO=(.git .hg .svn .venv venv node_modules __pycache__ site-packages target)
# Longer files are no programs or settings; logs quote commands and call nobody.
declare -r LONGEST_FILE=1000000
# In a longer line (of a minified or generated file) the expressions below take minutes.
declare -r LONGEST_LINE=20000

# ---- How a line looks that calls a script. All are extended regular
# expressions; what a group holds is counted where they are put together.

NAMES=$(IFS='|' && printf '(%s)\\.sh' "${NAMES_OF_SCRIPTS[*]}") # 1 group
# The name ends here, and it is not NAME.sh.orig; a full stop may end a sentence.
declare -r NAME_ENDS='([^[:alnum:]_.-]|\.?$|\.[^[:alnum:]])'
# bash, /bin/sh, $SHELL, "$BASH"; not the `sh` of another-script.sh.
declare -r SHELL_NAME='(^|[^[:alnum:]_.])((ba|da|z|k|mk|ya|a|rba)?sh|\$\{?(SHELL|BASH)\}?)' # 4 groups
# Its options, but none that has a c: what follows `-c` is a command line of its own.
declare -r OPTIONS='["'\'']?([[:space:]]+([-+][oO][[:space:]]+[a-z]+|[-+][abd-zA-Z]+|--[a-z-]*))*[[:space:]]+' # 2 groups
# What may stand before the name in the same word: text, quoted text, $(...).
declare -r BRACKETS='\(([^()]|\(([^()]|\([^()]*\))*\))*\)' # 2 groups
declare -r PIECES='([^][:space:]"'\''`;|&()$<>[]|"[^"]*"|'\''[^'\'']*'\''|\$'$BRACKETS'|\$)*' # 3 groups
declare -r BEFORE_NAME='('$PIECES'(["'\''][^"'\'']*)?[/}"'\'')=])?' # 5 groups

declare -r RUN_BY_SHELL=$SHELL_NAME$OPTIONS$BEFORE_NAME$NAMES$NAME_ENDS # name: 12, before it: 7
declare -r SOURCED='(^|[;&|({[:space:]])(\.|source)[[:space:]]+'$BEFORE_NAME$NAMES$NAME_ENDS # name: 8, before it: 3
# ["bash", "x.sh"] and "command": "bash", "args": ["x.sh"]
declare -r LISTED='["'\'']([^"'\'']*/)?(ba|da|z|k|mk|ya|a)?sh["'\''][[:space:]]*,([^;]*)' # the rest: 3
# What follows it is a command line of its own, in which a link does no harm.
declare -r COMMAND_OPTION='(^|["'\''[:space:],])-[a-z]*c(["'\''[:space:],]|$)' # 2 groups
# A line that ends with the shell; the script stands on one of the next.
declare -r SHELL_ENDS_LINE='(^|[^[:alnum:]_.])(ba|da|z|k|mk|ya|a)?sh["'\'']?,?[[:space:]]*\\?$'

# ---- Looking.

# find_callers DIR PLACE...: looks into DIR and into each PLACE, which is a file,
# a folder, or `-` for standard input.
find_callers() {
    local dir=$1 place kind path target
    local -a starts=() files=() without=() words=()
    shift
    for place in "$dir" "$@"; do
        if [[ $place == - ]]; then
            look_into_stream 'standard input' <&0
        elif [[ -d $place ]]; then
            # By `.`, lest a folder that was named is taken for one not to be looked into.
            starts+=("$place/.")
        elif [[ -f $place && -r $place ]]; then
            starts+=("$place")
        elif [[ -r $place ]]; then
            # shellcheck disable=SC2094  # it only names it
            look_into_stream "$place" <"$place"
        else
            refuse "cannot look for callers in $(shown "$place"): it is not there, or you may not read it"
        fi
    done
    # A name that begins with a dash would be an option to find.
    for place in "${!starts[@]}"; do
        [[ ${starts[place]} == /* ]] || starts[place]=$PWD/${starts[place]}
    done
    for place in "${NOT_LOOKED_INTO[@]}"; do without+=(-o -name "$place"); done
    while IFS= read -r -d '' kind && IFS= read -r -d '' path && IFS= read -r -d '' target; do
        path=${path/\/.\//\/}
        case $kind in
            file) files+=("$path") ;;
            link) look_at_link "$path" "$target" ;;
            closed) say "Note: you may not look into $(shown "${path%/.}"): callers in it are not found" ;;
        esac
    done < <(find -H "${starts[@]}" -type d \( "${without[@]:1}" \) -prune -o \
        -type l -lname '*.sh' -printf 'link\0%p\0%l\0' -o \
        \( -type f -o -type d \) ! -readable -printf 'closed\0%p\0\0' -o \
        -type f ! -name '*.log' -size "-${LONGEST_FILE}c" -printf 'file\0%p\0\0' 2>/dev/null)
    for place in "${NAMES_OF_SCRIPTS[@]}"; do words+=(-e "$place.sh"); done
    while IFS= read -r -d '' path; do
        # shellcheck disable=SC2094  # it only names it
        look_into_stream "$path" <"$path"
    done < <(((${#files[@]} == 0)) || printf '%s\0' "${files[@]}" |
        xargs -0 grep -lIZF "${words[@]}" -- 2>/dev/null | sort -zu)
}

# look_at_link LINK TARGET: a link of one's own, in another folder, to a script of DIR.
look_at_link() {
    local link=$1 target=$2 name
    [[ $target == /* ]] || target=${link%/*}/$target
    name=${target##*/}
    is_name_of_script "${name%.sh}" || return 0
    [[ ${target%/*} -ef $dir && ! ${link%/*} -ef $dir ]] || return 0
    found "${name%.sh}" "$link" 'a link' 'is a link to it in another folder'
}

# look_into_stream LABEL: looks at the lines of standard input.
look_into_stream() {
    local label=$1 line number variable words shell_ends=-9
    local -a lines
    # A variable that holds a script's name, and which ones.
    local -A variables=()
    mapfile -t lines
    for number in "${!lines[@]}"; do
        line=${lines[number]}
        [[ $line == *.sh* && $line =~ $NAMES ]] || continue
        if ((${#line} > LONGEST_LINE)); then
            say "Note: $(shown "$label"):$((number + 1)) names ${BASH_REMATCH[0]} and is too long to be searched (${#line} bytes): a caller in it is not found"
            continue
        fi
        remember_variable "$line"
    done
    words=
    for variable in "${!variables[@]}"; do words+="|$variable"; done
    for number in "${!lines[@]}"; do
        # Escaped quotes, as in JSON, are quotes to whoever runs the line.
        line=${lines[number]//\\\"/\"}
        ((${#line} <= LONGEST_LINE)) || continue
        [[ ! $line =~ ^[[:space:]]*(\#|//) ]] || continue
        if [[ $line == *.sh* && $line =~ $NAMES ]]; then
            look_at_line "$line" && continue
            if ((number - shell_ends <= 3)) && [[ ! $line =~ $COMMAND_OPTION && $line =~ (^|.*[^[:alnum:]_.-])$NAMES$NAME_ENDS ]]; then
                is_elsewhere "${BASH_REMATCH[1]##*[\"\' ]}" || found_line "${BASH_REMATCH[2]}" 'runs it with a shell'
                continue
            fi
        fi
        if [[ $line == *sh* && $line =~ $SHELL_ENDS_LINE ]]; then
            shell_ends=$number
        elif [[ $line == *-*c* && $line =~ $COMMAND_OPTION ]]; then
            shell_ends=-9
        fi
        [[ -z $words ]] || look_for_variable "$line"
    done
}

# look_at_line LINE: does it call scripts by name? Uses label and number.
look_at_line() {
    local line=$1 rest=$1 any=1 name between
    while [[ $rest =~ $RUN_BY_SHELL ]]; do
        rest=${rest#*"${BASH_REMATCH[0]}"}
        name=${BASH_REMATCH[12]}
        is_elsewhere "${BASH_REMATCH[7]}" && continue
        found_line "$name" 'runs it with a shell'
        any=0
    done
    rest=$line
    while [[ $rest =~ $SOURCED ]]; do
        rest=${rest#*"${BASH_REMATCH[0]}"}
        name=${BASH_REMATCH[8]}
        is_elsewhere "${BASH_REMATCH[3]}" && continue
        found_line "$name" 'sources it'
        any=0
    done
    if ((any)) && [[ $line =~ $LISTED ]]; then
        between=${BASH_REMATCH[3]}
        if [[ ! $between =~ $COMMAND_OPTION && $between =~ (^|.*[^[:alnum:]_.-])$NAMES$NAME_ENDS ]]; then
            name=${BASH_REMATCH[2]}
            is_elsewhere "${BASH_REMATCH[1]##*[\"\']}" && return 1
            found_line "$name" 'runs it with a shell'
            any=0
        fi
    fi
    return "$any"
}

# remember_variable LINE: NAME=.../x.sh, NAME = "x.sh", for NAME in x.sh y.sh
remember_variable() {
    local line=$1 name value rest
    [[ $line =~ (^|[^[:alnum:]_$])([A-Za-z_][A-Za-z0-9_]*)[\"\']?[[:space:]]*([:?+]?=|:)[[:space:]]*(.*) ||
        $line =~ (^|[[:space:]])for[[:space:]]+([A-Za-z_][A-Za-z0-9_]*)[[:space:]]+(in)[[:space:]]+(.*) ]] || return 0
    name=${BASH_REMATCH[2]} value=${BASH_REMATCH[4]}
    rest=$value
    while [[ $rest =~ (^|[^[:alnum:]_.-])$NAMES$NAME_ENDS ]]; do
        rest=${rest#*"${BASH_REMATCH[2]}.sh"}
        [[ " ${variables[$name]-} " == *" ${BASH_REMATCH[2]} "* ]] || variables[$name]+=" ${BASH_REMATCH[2]}"
    done
}

# look_for_variable LINE: does it run what a remembered variable holds?
look_for_variable() {
    local line=$1 variable name
    [[ $line =~ (^|[^[:alnum:]_])(${words#|})([^[:alnum:]_]|$) ]] || return 0
    for variable in "${!variables[@]}"; do
        local use='(\$\(?\{?|\{|\$\()'$variable'([^[:alnum:]_]|$)'
        local listed='(^|[^[:alnum:]_])'$variable'([^[:alnum:]_]|$)'
        if [[ $line =~ $SHELL_NAME$OPTIONS$BEFORE_NAME$use ]] ||
            [[ $line =~ $LISTED && ! $line =~ $COMMAND_OPTION && $line =~ $LISTED && ${BASH_REMATCH[3]} =~ $listed ]]; then
            for name in ${variables[$variable]}; do
                found_line "$name" "runs it with a shell, by the variable $variable"
            done
        elif [[ $line =~ (^|[\;\&|\(\{[:space:]])(\.|source)[[:space:]]+$BEFORE_NAME$use ]]; then
            for name in ${variables[$variable]}; do
                found_line "$name" "sources it, by the variable $variable"
            done
        fi
    done
}

# is_elsewhere TEXT: TEXT, which stands before the name, is plainly another folder.
is_elsewhere() {
    local folder=$1
    folder=${folder#[\"\']}
    [[ $folder == /*/ && $folder != *[\"\'\`\$\{\}\(\)\\]* ]] || return 1
    [[ -d $folder && ! $folder -ef $dir ]]
}

found_line() { # SCRIPT HOW
    found "$1" "$label:$((number + 1))" "${lines[number]}" "$2"
}

found() { # SCRIPT PLACE TEXT HOW
    local text=${3#"${3%%[![:space:]]*}"}
    CALLER_SCRIPT+=("$1") CALLER_PLACE+=("$2") CALLER_TEXT+=("$text") CALLER_HOW+=("$4")
}
