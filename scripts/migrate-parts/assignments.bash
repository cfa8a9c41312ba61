#!/bin/bash
# Reads the assignments of a shell script as data: nothing of it is ever run.
# Part of scripts/migrate, which sources it.
#
# A value is kept as text in which FROM_ENV NAME END_ENV stands for a variable
# that the script does not set itself, so that it can be told from a `$` that
# is meant literally.

FROM_ENV=$'\x01'
END_ENV=$'\x02'

# What read_assignments has found, one entry for each assignment.
declare -a ASSIGNED_NAME=() ASSIGNED_VALUE=() ASSIGNED_LINE=() ASSIGNED_SCRIPT=() ASSIGNED_TEXT=()
declare -a ASSIGNED_WHY_NOT=()  # empty, or why the value cannot be known without running it
declare -a ASSIGNED_OVERRIDE=() # a variable of the caller's that wins over the value, if any
declare -A VARIABLES=()         # the script's own variables so far
UNKNOWN=$'\x03'                 # what a variable holds whose value cannot be known

# ---- Words.

# parse_word TEXT: reads one shell word at the beginning of TEXT. Sets WORD, REST
# (what follows it), WHY_NOT (why it cannot be known), OVERRIDE and OPEN_QUOTE.
parse_word() {
    local text=$1 quoted=
    WORD='' REST='' WHY_NOT='' OVERRIDE='' OPEN_QUOTE=''
    while [[ -n $text ]]; do
        case $text in
            \'*)
                if [[ -n $quoted ]]; then
                    WORD+=\' text=${text:1}
                elif [[ ${text:1} == *\'* ]]; then
                    text=${text:1}
                    WORD+=${text%%\'*} text=${text#*\'}
                else
                    WHY_NOT='a string over several lines' OPEN_QUOTE=\'
                    return
                fi
                ;;
            \"*)
                if [[ -n $quoted ]]; then quoted=; else quoted=yes; fi
                text=${text:1}
                ;;
            "\\"*)
                if [[ -n $quoted && ${text:1:1} != [\$\`\"\\] ]]; then
                    WORD+="\\" text=${text:1}
                else
                    WORD+=${text:1:1} text=${text:2}
                fi
                ;;
            \$* | \`*)
                parse_expansion "$text" || return
                text=$REST
                ;;
            '~'*)
                if [[ -z $quoted && -z $WORD ]]; then
                    if [[ $text =~ ^~([/:;[:space:]]|$) ]]; then
                        WORD+=${FROM_ENV}HOME$END_ENV text=${text:1}
                    else
                        WHY_NOT="the home folder of a user by name"
                        return
                    fi
                else
                    WORD+='~' text=${text:1}
                fi
                ;;
            [[:space:]\;\&\|\<\>\(\)]*)
                if [[ -z $quoted ]]; then
                    REST=$text
                    return
                fi
                WORD+=${text:0:1} text=${text:1}
                ;;
            [\*\?\[]*)
                if [[ -z $quoted ]]; then
                    WHY_NOT='a file name pattern'
                    return
                fi
                WORD+=${text:0:1} text=${text:1}
                ;;
            *) WORD+=${text:0:1} text=${text:1} ;;
        esac
    done
    REST=
    [[ -z $quoted ]] || WHY_NOT='a string over several lines' OPEN_QUOTE=\"
}

# parse_expansion TEXT: TEXT begins with `$` or a backquote. Adds what it stands
# for to WORD and sets REST; fails with WHY_NOT.
parse_expansion() {
    local text=$1 inner
    # shellcheck disable=SC2016  # these are what the text itself begins with
    case $text in
        '$(('*)
            WHY_NOT='arithmetic'
            return 1
            ;;
        '$('*)
            take_nested "${text:2}" '(' ')' || return 1
            evaluate_command "$NESTED"
            ;;
        \`*)
            if [[ ${text:1} != *\`* ]]; then
                WHY_NOT='a command over several lines'
                return 1
            fi
            inner=${text:1}
            REST=${inner#*\`}
            evaluate_command "${inner%%\`*}"
            ;;
        '${'*)
            take_nested "${text:2}" '{' '}' || return 1
            evaluate_parameter "$NESTED"
            ;;
        *)
            if [[ $text =~ ^\$([A-Za-z_][A-Za-z0-9_]*|0) ]]; then
                REST=${text:${#BASH_REMATCH[0]}}
                evaluate_parameter "${BASH_REMATCH[1]}"
            elif [[ $text =~ ^\$[0-9@*#?!\$-] ]]; then
                WHY_NOT="${BASH_REMATCH[0]} is only known when it runs"
                return 1
            elif [[ $text == '$'[\'\"]* ]]; then
                WHY_NOT='a string with escapes'
                return 1
            else
                WORD+=\$ REST=${text:1}
            fi
            ;;
    esac
}

# take_nested TEXT OPEN CLOSE: TEXT is what follows OPEN. Sets NESTED (up to the
# CLOSE that belongs to it) and REST.
take_nested() {
    local text=$1 open=$2 close=$3 depth=1 at=0 char
    while ((at < ${#text})); do
        char=${text:at:1}
        case $char in
            "\\") ((at++)) ;;
            "$open") ((depth++)) ;;
            "$close")
                if ((--depth == 0)); then
                    NESTED=${text:0:at} REST=${text:at+1}
                    return
                fi
                ;;
        esac
        ((at++))
    done
    WHY_NOT='an expansion over several lines'
    return 1
}

# skip_word TEXT: sets REST to what follows the word at the beginning of TEXT,
# whatever it may come to; fails if it does not end on this line.
skip_word() {
    local text=$1 quoted=
    REST='' WHY_NOT=''
    while [[ -n $text ]]; do
        # shellcheck disable=SC2016  # these are what the text itself begins with
        case $text in
            "\\"*) text=${text:2} ;;
            \'*)
                text=${text:1}
                if [[ -z $quoted ]]; then
                    [[ $text == *\'* ]] || return 1
                    text=${text#*\'}
                fi
                ;;
            \"*)
                if [[ -n $quoted ]]; then quoted=; else quoted=yes; fi
                text=${text:1}
                ;;
            '$('*) take_nested "${text:2}" '(' ')' || return 1; text=$REST ;;
            '${'*) take_nested "${text:2}" '{' '}' || return 1; text=$REST ;;
            \`*)
                text=${text:1}
                [[ $text == *\`* ]] || return 1
                text=${text#*\`}
                ;;
            [[:space:]\;\&\|\<\>\(\)]*)
                if [[ -z $quoted ]]; then
                    REST=$text
                    return
                fi
                text=${text:1}
                ;;
            *) text=${text:1} ;;
        esac
    done
    REST=
    [[ -z $quoted ]]
}

# in_word FUNCTION ARGUMENT...: runs a function that parses a word of its own
# within the one that is being read; its result is INNER.
in_word() {
    local outer=$WORD rest=$REST override=$OVERRIDE
    "$@"
    INNER=$WORD INNER_REST=$REST
    WORD=$outer REST=$rest OVERRIDE=${OVERRIDE:-$override}
    [[ -z $WHY_NOT ]]
}

# evaluate_parameter TEXT: the inside of ${...}. Adds to WORD.
evaluate_parameter() {
    local text=$1 name operator value
    if ! [[ $text =~ ^(BASH_SOURCE\[0\]|[A-Za-z_][A-Za-z0-9_]*|0)(.*)$ ]]; then
        WHY_NOT="\${$text}"
        return 1
    fi
    name=${BASH_REMATCH[1]} operator=${BASH_REMATCH[2]}
    case $name in
        0 | BASH_SOURCE | 'BASH_SOURCE[0]') value=$SCRIPT_PATH ;;
        PWD) value=$SCRIPT_FOLDER ;;
        RANDOM | SECONDS | PPID | UID | EUID | HOSTNAME | LINENO | BASHPID)
            WHY_NOT="\$$name is only known when it runs"
            return 1
            ;;
        *)
            if [[ -v VARIABLES[$name] ]]; then
                value=${VARIABLES[$name]}
            else
                value=$FROM_ENV$name$END_ENV
            fi
            ;;
    esac
    if [[ $value == "$UNKNOWN" ]]; then
        WHY_NOT="\$$name is not known"
        return 1
    fi
    case $operator in
        '') WORD+=$value ;;
        '%/*') WORD+=${value%/*} ;;
        :-* | -* | :=* | =*)
            if [[ $value == "$FROM_ENV$name$END_ENV" ]]; then
                # The script's own default; the caller's variable came first.
                operator=${operator#:}
                in_word parse_quoted "${operator:1}" || return 1
                WORD+=$INNER OVERRIDE=$name
            else
                WORD+=$value
            fi
            ;;
        *)
            WHY_NOT="\${$text}"
            return 1
            ;;
    esac
}

# parse_quoted TEXT: a word that may hold spaces, as in ${NAME:-two words}.
parse_quoted() {
    if [[ $1 == *[\"\']* ]]; then parse_word "$1"; else parse_word "\"$1\""; fi
}

# evaluate_command TEXT: what `$(TEXT)` gives, for the few commands by which a
# script finds its own folder. Adds to WORD.
evaluate_command() {
    local text=$1
    local quiet='[[:space:]]*(&>|[12]?>)[[:space:]]*(/dev/null|&[12])'
    while [[ $text =~ $quiet ]]; do
        text=${text/"${BASH_REMATCH[0]}"/}
    done
    text=${text#"${text%%[![:space:]]*}"}
    text=${text%"${text##*[![:space:]]}"}
    if [[ $text =~ ^pwd([[:space:]]+-[LP])?$ ]]; then
        WORD+=$SCRIPT_FOLDER
        return
    fi
    if [[ $text =~ ^(dirname|realpath|readlink[[:space:]]+-[fm])[[:space:]]+(--[[:space:]]+)?(.*)$ ]]; then
        local command=${BASH_REMATCH[1]}
        in_word parse_word "${BASH_REMATCH[3]}" || return 1
        if [[ -z $INNER_REST ]]; then
            [[ $command != dirname ]] || INNER=${INNER%/*}
            WORD+=$INNER
            return
        fi
    elif [[ $text =~ ^cd[[:space:]]+(-P[[:space:]]+)?(--[[:space:]]+)?(.*)$ ]]; then
        in_word parse_word "${BASH_REMATCH[3]}" || return 1
        if [[ $INNER_REST =~ ^[[:space:]]*(\&\&|\;)[[:space:]]*pwd([[:space:]]+-[LP])?$ ]]; then
            WORD+=$INNER
            return
        fi
    fi
    WHY_NOT="the output of a command ($text)"
    return 1
}

# ---- Scripts.

# read_assignments FILE SCRIPT: FILE is an original script, called SCRIPT when
# it is in use. Adds what it assigns at its outermost level to ASSIGNED_...:
# everything in its head, which ends where the first block begins, and below
# that the names that is_known_name accepts.
read_assignments() {
    local file=$1 script=$2
    SCRIPT_FOLDER=$(dirname -- "$file")
    SCRIPT_PATH=$SCRIPT_FOLDER/$script
    VARIABLES=()
    local -a lines
    mapfile -t lines <"$file"
    local at=0 line number depth=0 head=yes document='' string=''
    while ((at < ${#lines[@]})); do
        line=${lines[at++]%$'\r'} number=$at
        # Inside a here-document, or a string that goes over several lines.
        if [[ -n $document ]]; then
            [[ ${line#"${line%%[!$'\t']*}"} != "$document" ]] || document=
            continue
        elif [[ -n $string ]]; then
            [[ $line != *"$string"* ]] || string=
            continue
        fi
        ! is_idle "$line" || continue
        while is_continued "$line" && ((at < ${#lines[@]})); do
            line=${line%\\}${lines[at++]%$'\r'}
        done
        ! opens_document "$line" || document=$DOCUMENT
        follow_blocks "$line"
        if ((depth > 0)) || [[ -n $BLOCK ]]; then
            head=
            note_inner "$line"
        else
            take_line "$line"
            string=$OPEN_QUOTE
        fi
    done
}

# An empty line or a comment?
is_idle() { [[ ${1#"${1%%[![:space:]]*}"} == @(|\#*) ]]; }

# Does a line go on in the next one?
is_continued() { [[ $1 == *\\ && $1 =~ (^|[^\\])(\\\\)*\\$ ]]; }

# opens_document LINE: does a here-document begin below it? Sets DOCUMENT, the word
# that ends it.
opens_document() {
    [[ $1 == *'<<'* && $1 != *'<<<'* && $1 =~ \<\<-?[[:space:]]*[\'\"\\]?([A-Za-z_][A-Za-z0-9_]*) ]] || return 1
    DOCUMENT=${BASH_REMATCH[1]}
}

# The lines of a script as its shell reads them, and where each begins.
declare -a SCRIPT_LINE=() SCRIPT_NUMBER=()

# read_lines FILE: those that hold commands, joined where they end in a backslash.
# Comments, empty lines and what stands in here-documents are left out.
read_lines() {
    local -a lines
    local at=0 line number end
    SCRIPT_LINE=() SCRIPT_NUMBER=()
    mapfile -t lines <"$1"
    while ((at < ${#lines[@]})); do
        line=${lines[at++]%$'\r'} number=$at
        ! is_idle "$line" || continue
        while is_continued "$line" && ((at < ${#lines[@]})); do
            line=${line%\\}${lines[at++]%$'\r'}
        done
        SCRIPT_LINE+=("$line") SCRIPT_NUMBER+=("$number")
        opens_document "$line" || continue
        # Where it ends. If it does not, that was none, and nothing is skipped.
        for ((end = at; end < ${#lines[@]}; end++)); do
            line=${lines[end]%$'\r'}
            [[ ${line#"${line%%[!$'\t']*}"} == "$DOCUMENT" ]] || continue
            at=$((end + 1))
            break
        done
    done
}

# follow_blocks LINE: keeps the depth of read_assignments; BLOCK says whether
# the line itself opens or closes a block.
follow_blocks() {
    local line=$1 opens='' closes=''
    line=${line#"${line%%[![:space:]]*}"}
    line=${line%"${line##*[![:space:]]}"}
    # The patterns are for speed: each expression is compiled anew.
    if [[ $line == @(if|for|while|until|case|select)* && $line =~ ^(if|for|while|until|case|select)([[:space:]]|$) ]]; then
        opens=yes
        [[ ! $line =~ (^|[[:space:]\;])(fi|done|esac)([[:space:]]*[\;\&|\<\>].*)?$ ]] || closes=yes
    elif [[ $line == *'()' && $line =~ ^(function[[:space:]]+)?[A-Za-z_][A-Za-z0-9_-]*[[:space:]]*\(\)$ ]]; then
        # The brace on the next line opens it.
        BLOCK=yes
        return
    elif [[ $line == @(function*|*'()'*) && $line =~ ^(function[[:space:]]|[A-Za-z_][A-Za-z0-9_-]*[[:space:]]*\(\)) ]] ||
        [[ $line == @(|*[[:space:]])[\{\(] ]]; then
        opens=yes
        [[ ! $line =~ [[:space:]\;]\}$ ]] || closes=yes
    elif [[ $line == @(fi|done|esac|\}|\))* && $line =~ ^(fi|done|esac|\}|\))([[:space:]\;\&|\<\>]|$) ]]; then
        closes=yes
    fi
    BLOCK=$opens$closes
    [[ -z $opens ]] || ((depth += 1))
    [[ -z $closes ]] || ((depth == 0)) || ((depth -= 1))
    return 0
}

declare -r ASSIGNMENT='^[[:space:]]*((export|readonly|declare|typeset|local)[[:space:]]+(-[a-zA-Z]+[[:space:]]+)*)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$'
declare -r DEFAULTING='^[[:space:]]*:[[:space:]]+"?\$\{([A-Za-z_][A-Za-z0-9_]*):?=([^}]*)\}"?[[:space:]]*(#.*)?$'

# take_line LINE: records what a line at the outermost level assigns. Uses
# read_assignments' number, script and head.
take_line() {
    local line=$1 rest=$1
    OPEN_QUOTE=
    if [[ $line == *:*\$\{* && $line =~ $DEFAULTING ]]; then
        rest="${BASH_REMATCH[1]}=\"\${${BASH_REMATCH[1]}:-${BASH_REMATCH[2]}}\""
    fi
    while [[ $rest == *=* && $rest =~ $ASSIGNMENT ]]; do
        local name=${BASH_REMATCH[4]} value=${BASH_REMATCH[5]}
        if [[ $value == '('* ]]; then
            WORD='' REST='' WHY_NOT='a list' OVERRIDE=''
        else
            parse_word "$value"
            # Where it is given up is somewhere in the word.
            if [[ -n $WHY_NOT && -z $OPEN_QUOTE ]]; then
                local why_not=$WHY_NOT
                skip_word "$value" || REST=
                WHY_NOT=$why_not
            fi
        fi
        rest=$REST
        # NAME=value COMMAND: for that command only.
        [[ $rest =~ ^[[:space:]]*(#|\;|\&\&|$) || $rest =~ $ASSIGNMENT ]] || return 0
        [[ ! $rest =~ ^[[:space:]]*(\;|\&\&)(.*)$ ]] || rest=${BASH_REMATCH[2]}
        VARIABLES[$name]=$WORD
        [[ -z $WHY_NOT ]] || VARIABLES[$name]=$UNKNOWN
        if [[ -n $head ]] || is_known_name "$name"; then
            record "$name" "$WORD" "$WHY_NOT" "$OVERRIDE" "$line"
        fi
    done
}

# note_inner LINE: a variable that is assigned inside a block is not known from
# then on, since nobody can tell whether that block has run.
note_inner() {
    local line=$1
    [[ $line =~ $ASSIGNMENT ]] || return 0
    VARIABLES[${BASH_REMATCH[4]}]=$UNKNOWN
    is_known_name "${BASH_REMATCH[4]}" || return 0
    record "${BASH_REMATCH[4]}" '' 'assigned inside a block, perhaps under a condition' '' "$line"
}

record() { # NAME VALUE WHY_NOT OVERRIDE LINE
    ASSIGNED_NAME+=("$1") ASSIGNED_VALUE+=("$2") ASSIGNED_WHY_NOT+=("$3")
    ASSIGNED_OVERRIDE+=("$4") ASSIGNED_TEXT+=("$5")
    ASSIGNED_LINE+=("$number") ASSIGNED_SCRIPT+=("$script")
}

# in_environment VALUE: sets IN_ENVIRONMENT to VALUE with this environment's
# variables put in.
in_environment() {
    local value=$1 name
    while [[ $value =~ $FROM_ENV([A-Za-z_][A-Za-z0-9_]*)$END_ENV ]]; do
        name=${BASH_REMATCH[1]}
        value=${value//"${BASH_REMATCH[0]}"/"${!name-}"}
    done
    # shellcheck disable=SC2034  # the caller reads it
    IN_ENVIRONMENT=$value
}
