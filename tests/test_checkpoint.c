#include <jansson.h>

#include "tests/small_checkpoint.h"

#define INDEX "model.safetensors.index.json"

/* Refused, and the message says why. */
static void check_refused(lh_status want, const char *text)
{
    lh_status st = open_small();
    CHECK_MSG(st == want, "%s: %s, expected %s", text, lh_status_name(st), lh_status_name(want));
    CHECK_MSG(strstr(lh_last_error(), text), "'%s' lacks '%s'", lh_last_error(), text);
}

/* Each tensor in turn is missing, misnamed, of another shape, of another type. */
static void test_each_tensor(void)
{
    static lh_st_tensor changed[MAX_TENSORS];

    make_tensors(small_config);
    CHECK_OK(write_single(tensors, n_tensors));
    CHECK_OK(open_small());
    for (int i = 0; i < n_tensors; i++) {
        memcpy(changed, tensors, sizeof changed);
        changed[i].name = "model.other";
        CHECK_OK(write_single(changed, n_tensors));
        check_refused(LH_ERR_DATA, names[i]);

        changed[i] = tensors[i];
        changed[i].dims[changed[i].n_dims++] = 1;
        CHECK_OK(write_single(changed, n_tensors));
        check_refused(LH_ERR_DATA, names[i]);

        changed[i] = tensors[i];
        changed[i].dtype = strcmp(tensors[i].dtype, "F32") == 0 ? "I32" : "F16";
        CHECK_OK(write_single(changed, n_tensors));
        check_refused(LH_ERR_DATA, names[i]);

        memmove(changed + i, tensors + i + 1, (size_t)(n_tensors - 1 - i) * sizeof *changed);
        CHECK_OK(write_single(changed, n_tensors - 1));
        check_refused(LH_ERR_DATA, names[i]);
    }
    tensors[n_tensors] = (lh_st_tensor){.name = "model.extra", .dtype = "F32"};
    tensors[n_tensors].dims[0] = 0;
    tensors[n_tensors].n_dims = 1;
    CHECK_OK(write_single(tensors, n_tensors + 1));
    check_refused(LH_ERR_DATA, "model.extra");
    free_tensors();
}

/* --------------------------------------------------------------- the index */

/* Two shards, odd and even tensors; the index as an object to be changed. */
static json_t *write_shards(void)
{
    static lh_st_tensor part[2][MAX_TENSORS];
    json_t *map = json_object();
    int n[2] = {0, 0};

    make_tensors(small_config);
    for (int i = 0; i < n_tensors; i++) {
        part[i % 2][n[i % 2]++] = tensors[i];
        (void)json_object_set_new(map, names[i],
                                  json_string(i % 2 ? "b.safetensors" : "a.safetensors"));
    }
    CHECK_OK(lh_safetensors_write(temp_path("a.safetensors"), part[0], n[0]));
    CHECK_OK(lh_safetensors_write(temp_path("b.safetensors"), part[1], n[1]));
    return json_pack("{s:{s:i}, s:o}", "metadata", "total_size", 1, "weight_map", map);
}

static void write_index(json_t *index)
{
    char *text = json_dumps(index, 0);
    temp_write_text(INDEX, text);
    free(text);
}

static void test_index(void)
{
    json_t *index = write_shards(), *map = json_object_get(index, "weight_map");

    write_index(index);
    CHECK_OK(open_small());
    temp_write_text("model.safetensors", "not looked at: the index wins");
    CHECK_OK(open_small());

    /* one shard named for a tensor of the other */
    (void)json_object_set_new(map, names[4], json_string("b.safetensors"));
    write_index(index);
    check_refused(LH_ERR_DATA, names[4]);
    CHECK(strstr(lh_last_error(), "should be in b.safetensors"));
    (void)json_object_del(map, names[4]);
    write_index(index);
    check_refused(LH_ERR_DATA, names[4]);
    (void)json_object_set_new(map, names[4], json_string("a.safetensors"));
    (void)json_object_set_new(map, "model.none", json_string("a.safetensors"));
    write_index(index);
    check_refused(LH_ERR_DATA, "model.none");
    (void)json_object_set_new(map, "model.none", json_string("c.safetensors"));
    write_index(index);
    check_refused(LH_ERR_OPEN, "c.safetensors");
    /* a tensor in two shards, whichever of them the index names */
    CHECK_OK(lh_safetensors_write(temp_path("c.safetensors"), tensors, 1));
    (void)json_object_del(map, "model.none");
    (void)json_object_set_new(map, names[1], json_string("c.safetensors"));
    write_index(index);
    check_refused(LH_ERR_DATA, names[1]);
    (void)json_object_set_new(map, names[1], json_string("b.safetensors"));
    (void)json_object_set_new(map, names[0], json_string("c.safetensors"));
    write_index(index);
    check_refused(LH_ERR_DATA, names[0]);
    json_decref(index);
    free_tensors();
}

static void test_broken_index(void)
{
    static const char *const texts[] = {
        "",
        "{",
        "[]",
        "{}",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{}}",
        "{\"weight_map\":null}",
        "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":null}}",
        "{\"weight_map\":{\"a\":[\"a.safetensors\"]}}",
        "{\"weight_map\":{\"a\":\"a.safetensors\",\"a\":\"a.safetensors\"}}",
    };

    json_decref(write_shards());
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        temp_write_text(INDEX, texts[i]);
        check_refused(LH_ERR_DATA, INDEX);
    }
    free_tensors();
}

/* Names that leave the directory, or are no files. */
static void test_shard_names(void)
{
    static const char *const bad[] = {
        "../x", "..",      ".",         "",        "/etc/passwd", "a/b",       "a/",
        "./a",  ".hidden", "..\\\\x",   "a\\\\b",  "\\u0000",     "a\\u0000b", "/",
        "//a",  "a/../b",  "/dev/zero", "\\ud800", "~/../a/b",    "C:\\\\a",
    };
    char text[256], long_name[400];

    json_decref(write_shards());
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        (void)snprintf(text, sizeof text, "{\"weight_map\":{\"a\":\"%s\"}}", bad[i]);
        temp_write_text(INDEX, text);
        check_refused(LH_ERR_DATA, INDEX);
    }
    memset(long_name, 'n', sizeof long_name);
    memcpy(long_name, "{\"weight_map\":{\"a\":\"", 20);
    strcpy(long_name + 300, "\"}}");
    temp_write_text(INDEX, long_name);
    check_refused(LH_ERR_DATA, INDEX);
    free_tensors();
}

static void test_shard_files(void)
{
    json_t *index = write_shards();
    const char *a = temp_path("a.safetensors"), *moved = temp_path("moved");
    char path[512], elsewhere[512];

    strcpy(path, a);
    strcpy(elsewhere, moved);
    write_index(index);
    CHECK_EQ(rename(path, elsewhere), 0);
    check_refused(LH_ERR_OPEN, "a.safetensors");
    CHECK_EQ(mkfifo(path, 0600), 0);
    check_refused(LH_ERR_DATA, "not a regular file");
    CHECK_EQ(remove(path), 0);
    CHECK_EQ(mkdir(path, 0700), 0);
    check_refused(LH_ERR_DATA, "not a regular file");
    CHECK_EQ(remove(path), 0);
    CHECK_EQ(symlink("/dev/zero", path), 0);
    check_refused(LH_ERR_DATA, "not a regular file");
    CHECK_EQ(remove(path), 0);
    CHECK_EQ(symlink("a.safetensors", path), 0);
    check_refused(LH_ERR_OPEN, "a.safetensors");
    CHECK_EQ(remove(path), 0);
    CHECK_EQ(symlink(elsewhere, path), 0); /* how caches of downloads look: fine */
    CHECK_OK(open_small());
    json_decref(index);
    free_tensors();
}

static void test_truncated(void)
{
    size_t n;
    unsigned char *file;

    make_tensors(small_config);
    CHECK_OK(write_single(tensors, n_tensors));
    file = read_whole(temp_path("model.safetensors"), &n);
    for (size_t k = check_random() % 40; k < n; k += 1 + check_random() % 80) {
        temp_write("model.safetensors", file, k);
        CHECK_STATUS(open_small(), LH_ERR_DATA);
    }
    temp_write("model.safetensors", file, n + 1 - 1);
    CHECK_OK(open_small());
    CHECK_EQ(remove(temp_path("model.safetensors")), 0);
    CHECK_STATUS(open_small(), LH_ERR_OPEN);
    free(file);
    free_tensors();
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    temp_dir_create();
    RUN(test_each_tensor);
    RUN(test_index);
    RUN(test_broken_index);
    RUN(test_shard_names);
    RUN(test_shard_files);
    RUN(test_truncated);
    temp_dir_remove();
    return check_done();
}
