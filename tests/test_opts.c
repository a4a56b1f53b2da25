#include "base/opts.h"
#include "tests/check.h"

static lh_opts o;

/* A command line, words with spaces between, and at most one variable. */
static lh_status parse(const char *line, const char *variable)
{
    static char words[512];
    char *argv[32] = {(char *)"longhaul"};
    char *env[] = {(char *)"HOME=/", (char *)variable, NULL};
    int argc = 1;

    (void)snprintf(words, sizeof words, "%s", line);
    for (char *w = strtok(words, " "); w && argc < 31; w = strtok(NULL, " "))
        argv[argc++] = w;
    return lh_opts_parse_env(&o, argc, argv, env);
}

static void fails(const char *line, const char *variable, const char *message)
{
    CHECK_STATUS(parse(line, variable), LH_ERR_USAGE);
    CHECK_STR(lh_last_error(), message);
}

static void test_values(void)
{
    CHECK_OK(parse("generate --max-tokens 2k --temperature=0.5 --stop a --stop b --chat", NULL));
    CHECK_EQ(o.command, LH_CMD_GENERATE);
    CHECK_EQ(lh_opt_number(&o, LH_OPT_MAX_TOKENS), 2048);
    CHECK(lh_opt_real(&o, LH_OPT_TEMPERATURE) == 0.5);
    CHECK_EQ(o.values[LH_OPT_STOP].n_items, 2);
    CHECK_STR(o.values[LH_OPT_STOP].items.texts[1], "b");
    CHECK_EQ(lh_opt_number(&o, LH_OPT_CHAT), 1);
    CHECK_EQ(lh_opt_number(&o, LH_OPT_SEGMENT), 512);
    CHECK(!lh_opt_text(&o, LH_OPT_PROMPT));
    CHECK_STR(lh_opt_text(&o, LH_OPT_BACKEND), "auto");

    CHECK_OK(parse("needle --lengths 1k,300,2m", NULL));
    CHECK_EQ(o.values[LH_OPT_LENGTHS].n_items, 3);
    CHECK_EQ(o.values[LH_OPT_LENGTHS].items.sizes[2], 2 << 20);
    CHECK_EQ(o.values[LH_OPT_DEPTHS].n_items, 5);
    CHECK_OK(parse("plan --memory 80g --backend cuda", NULL));
    CHECK_EQ(lh_opt_number(&o, LH_OPT_MEMORY), 80LL << 30);
    CHECK_EQ(lh_opt_number(&o, LH_OPT_BACKEND), 2);
}

static void test_origin(void)
{
    char shown[32];

    CHECK_OK(parse("generate", "LH_PEER_TIMEOUT=5"));
    CHECK_EQ(o.values[LH_OPT_PEER_TIMEOUT].origin, LH_FROM_ENVIRONMENT);
    CHECK(lh_opt_real(&o, LH_OPT_PEER_TIMEOUT) == 5);
    CHECK_OK(parse("generate --peer-timeout 7", "LH_PEER_TIMEOUT=5"));
    CHECK_EQ(o.values[LH_OPT_PEER_TIMEOUT].origin, LH_FROM_COMMAND);
    CHECK(lh_opt_real(&o, LH_OPT_PEER_TIMEOUT) == 7);
    CHECK_OK(parse("needle --haystack x", "LH_HAYSTACK=y"));
    CHECK_EQ(o.values[LH_OPT_HAYSTACK].n_items, 1);
    CHECK_STR(o.values[LH_OPT_HAYSTACK].items.texts[0], "x");
    CHECK_OK(parse("needle --depths 5,50", NULL));
    lh_opt_show(&o, LH_OPT_DEPTHS, shown, sizeof shown);
    CHECK_STR(shown, "5,50");
    lh_opt_show(&o, LH_OPT_DEPTHS, shown, 3);
    CHECK_STR(shown, "5,");
    CHECK_OK(parse("tokenize", "LH_SVG=of-another-command"));
}

static void test_usage(void)
{
    fails("", NULL, "no command; longhaul --help lists them");
    fails("genrate", NULL, "unknown command 'genrate', nearest is 'generate'");
    fails("generate --promt x", NULL, "unknown option --promt, nearest is --prompt");
    fails("generate --svg x", NULL, "--svg is not an option of generate");
    fails("generate --prompt", NULL, "--prompt needs a value: TEXT");
    fails("generate --chat=1", NULL, "--chat takes no value, got '--chat=1'");
    fails("generate x", NULL, "unexpected argument 'x', expected an option that begins with --");
    fails("generate", "LH_THREAD=2", "unknown variable LH_THREAD, nearest is LH_THREADS");
    fails("generate", "LH_THREADS=0", "LH_THREADS: '0', expected a whole number from 1 to 4096");
    fails("plan --memory 17179869185g", NULL, /* 2^64 + 2^30 */
          "--memory: '17179869185g', expected a size, as 512, 4k, 1m or 2g, of 1 or more");
    fails("generate --backend gpu", NULL, "--backend: 'gpu', expected one of auto|cpu|cuda");
}

static void test_bad_numbers(void)
{
    static const char *const sizes[] = {
        "0",  "-1", "1kk", "k",           "",   "1x", "0x10", "1.5k", "1e3",
        " 1", "+1", "1 ",  "9999999999g", "2g", "--", "nan",  "1,2",  "99999999999999999999"};
    static const char *const reals[] = {"", "x", "nan", "inf", "-1", "1e999", "0.5x", " 1"};
    static const char *const lists[] = {"", ",", "1k,", ",1k", "1k,,2k", "63", "1k;2k"};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char *argv[] = {(char *)"longhaul", (char *)"generate", (char *)"--max-tokens",
                        (char *)sizes[i], NULL};
        CHECK_STATUS(lh_opts_parse_env(&o, 4, argv, NULL), LH_ERR_USAGE);
    }
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        char *argv[] = {(char *)"longhaul", (char *)"generate", (char *)"--temperature",
                        (char *)reals[i], NULL};
        CHECK_STATUS(lh_opts_parse_env(&o, 4, argv, NULL), LH_ERR_USAGE);
    }
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        char *argv[] = {(char *)"longhaul", (char *)"needle", (char *)"--lengths", (char *)lists[i],
                        NULL};
        CHECK_STATUS(lh_opts_parse_env(&o, 4, argv, NULL), LH_ERR_USAGE);
    }
}

/* Two commands have an option of one name. */
static void test_shared_name(void)
{
    CHECK_OK(parse("bench --decode 1k,2k", NULL));
    CHECK_EQ(o.values[LH_OPT_DECODE_AT].items.sizes[1], 2048);
    CHECK_EQ(lh_opt_number(&o, LH_OPT_DECODE), 0);
    CHECK_OK(parse("tokenize --decode", NULL));
    CHECK_EQ(lh_opt_number(&o, LH_OPT_DECODE), 1);
    CHECK(lh_opt_applies(&o, LH_OPT_DECODE) && !lh_opt_applies(&o, LH_OPT_DECODE_AT));
    CHECK_OK(parse("bench", "LH_DECODE=300"));
    CHECK_EQ(o.values[LH_OPT_DECODE_AT].items.sizes[0], 300);
    CHECK_OK(parse("tokenize", "LH_DECODE=1"));
    CHECK_EQ(lh_opt_number(&o, LH_OPT_DECODE), 1);
    CHECK_OK(parse("generate", "LH_DECODE=300")); /* somebody else's */
    fails("generate --decode", NULL, "--decode is not an option of generate");
    fails("tokenize", "LH_DECODE=300", "LH_DECODE: '300', expected 0 or 1");
}

/* Every option has a flag that no other of its command has, a valid default, and a variable that is
 * accepted. */
static void test_table(void)
{
    CHECK_OK(parse("info", NULL));
    for (int i = 0; i < LH_N_OPTS; i++) {
        char shown[128];
        lh_opt_show(&o, (lh_opt_id)i, shown, sizeof shown);
        CHECK(shown[0]);
        for (int j = 0; j < i; j++)
            for (int c = 0; c < LH_N_COMMANDS; c++) {
                o.command = (lh_command)c;
                CHECK(strcmp(lh_opt_flag((lh_opt_id)i), lh_opt_flag((lh_opt_id)j)) != 0 ||
                      !lh_opt_applies(&o, (lh_opt_id)i) || !lh_opt_applies(&o, (lh_opt_id)j));
            }
    }
    CHECK_OK(parse("--help", NULL));
    CHECK_EQ(o.command, LH_CMD_NONE);
    CHECK_OK(parse("plan --help", NULL));
    CHECK_EQ(o.command, LH_CMD_PLAN);
    CHECK_OK(parse("--version", NULL));
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_values);
    RUN(test_origin);
    RUN(test_usage);
    RUN(test_bad_numbers);
    RUN(test_shared_name);
    RUN(test_table);
    return check_done();
}
