# Writes OUT, a C file with the commit of SOURCES ("-dirty" with changes to it; "unknown" outside a checkout), if that is new.
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND git describe --always --dirty --abbrev=12 --exclude=* WORKING_DIRECTORY ${SOURCES}
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
    set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "extern const char lh_build_commit[];\nconst char lh_build_commit[] = \"@commit@\";\n" @ONLY)
