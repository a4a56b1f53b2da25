/*
 * A directory of the test's own, and small files in it. Files are removed with it.
 */
#ifndef LH_TESTS_TEMP_DIR_H
#define LH_TESTS_TEMP_DIR_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char temp_dir[64];

static inline void temp_dir_create(void)
{
    strcpy(temp_dir, "/tmp/longhaul-test-XXXXXX");
    if (!mkdtemp(temp_dir)) {
        perror("mkdtemp");
        exit(1);
    }
}

/* Files and empty directories of it; it stays. */
static inline void temp_dir_clear(void)
{
    char path[512];
    DIR *d = opendir(temp_dir);

    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            (void)snprintf(path, sizeof path, "%s/%s", temp_dir, e->d_name);
            (void)remove(path);
        }
    if (d)
        (void)closedir(d);
}

static inline void temp_dir_remove(void)
{
    temp_dir_clear();
    (void)rmdir(temp_dir);
}

/* The path of a file in it; one of four static buffers. */
static inline const char *temp_path(const char *name)
{
    static char paths[4][512];
    static int next;
    char *p = paths[next++ % 4];

    (void)snprintf(p, 512, "%s/%s", temp_dir, name);
    return p;
}

static inline void temp_write(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(temp_path(name), "wb");

    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
        perror(temp_path(name));
        exit(1);
    }
}

static inline void temp_write_text(const char *name, const char *text)
{
    temp_write(name, text, strlen(text));
}

/* A whole file; the caller frees it. */
static inline unsigned char *read_whole(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    unsigned char *p = NULL;

    if (f && fseek(f, 0, SEEK_END) == 0) {
        *n = (size_t)ftell(f);
        rewind(f);
        p = malloc(*n + 1);
        if (p && fread(p, 1, *n, f) != *n)
            *n = 0;
    }
    if (!p) {
        perror(path);
        exit(1);
    }
    (void)fclose(f);
    return p;
}

#endif
