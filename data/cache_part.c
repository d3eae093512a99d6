/* Owns HDF5: parts are made row by row, one chunk a row, and read the same way. A part is made in
 * memory and written by our own writer: a full disk in the middle of its own writes HDF5 does not
 * survive. */
#include "data/cache_part.h"

#include "data/whole.h"

#include <hdf5.h>

#include <stdlib.h>
#include <string.h>

enum { GROWTH_BYTES = 1 << 22 }; /* of a part in memory */

struct PartWriter {
    char *path;
    hid_t file;
};

struct PartReader {
    char *path;
    hid_t file;
};

static bool fault(const char *path, const char *what, int exit_code, Error *e) {
    return error_set(e, exit_code, "%.600s: HDF5 could not %s%s", path, what,
                     exit_code == EXIT_WORLD ? ". Is the disk full?"
                                             : "; the file is damaged. Remove it and run prepare "
                                               "again");
}

/* No messages on stderr, and no plug-ins: parts use no filters. */
static void quiet(void) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5PLset_loading_state(0);
}

PartWriter *part_create(const char *path, Error *e) {
    quiet();
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fapl_core(access, GROWTH_BYTES, false);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    H5Pclose(access);
    if (file < 0) {
        fault(path, "create the file", EXIT_WORLD, e);
        return NULL;
    }
    PartWriter *p = xcalloc(1, sizeof *p);
    *p = (PartWriter){.path = xstrdup(path), .file = file};
    return p;
}

static hid_t create_rows(hid_t file, const char *name, int n_dims, const int64_t *dims) {
    hsize_t size[PART_MAX_DIMS + 1] = {0}, most[PART_MAX_DIMS + 1] = {H5S_UNLIMITED},
                                 chunk[] = {1, 0, 0, 0, 0, 0};
    for (int i = 0; i < n_dims; i++) size[i + 1] = most[i + 1] = chunk[i + 1] = (hsize_t)dims[i];
    hid_t space = H5Screate_simple(n_dims + 1, size, most);
    hid_t create = H5Pcreate(H5P_DATASET_CREATE), links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_chunk(create, n_dims + 1, chunk);
    H5Pset_fill_time(create, H5D_FILL_TIME_NEVER);
    H5Pset_create_intermediate_group(links, 1);
    hid_t set = H5Dcreate2(file, name, H5T_STD_U16LE, space, links, create, H5P_DEFAULT);
    if (set >= 0) {
        hid_t text = H5Tcopy(H5T_C_S1), one = H5Screate(H5S_SCALAR);
        H5Tset_size(text, 5);
        hid_t attribute = H5Acreate2(set, "dtype", text, one, H5P_DEFAULT, H5P_DEFAULT);
        if (attribute >= 0) H5Awrite(attribute, text, "BF16");
        H5Aclose(attribute);
        H5Sclose(one);
        H5Tclose(text);
    }
    H5Pclose(links);
    H5Pclose(create);
    H5Sclose(space);
    return set;
}

bool part_append(PartWriter *p, const char *group, const char *name, int n_dims,
                 const int64_t *dims, const uint16_t *values, int64_t *row, Error *e) {
    char *path = xprintf("%s/%s", group, name);
    size_t bytes = sizeof *values;
    for (int i = 0; i < n_dims; i++) bytes *= (size_t)dims[i];
    hid_t set = H5Dopen2(p->file, path, H5P_DEFAULT);
    if (set < 0) set = create_rows(p->file, path, n_dims, dims);
    free(path);
    hsize_t size[PART_MAX_DIMS + 1], at[PART_MAX_DIMS + 1] = {0};
    hid_t space = H5Dget_space(set);
    bool ok = set >= 0 && H5Sget_simple_extent_ndims(space) == n_dims + 1 &&
              H5Sget_simple_extent_dims(space, size, NULL) >= 0;
    if (ok) {
        *row = (int64_t)size[0];
        at[0] = size[0]++;
        ok = H5Dset_extent(set, size) >= 0 &&
             H5Dwrite_chunk(set, H5P_DEFAULT, 0, at, bytes, values) >= 0;
    }
    H5Sclose(space);
    H5Dclose(set);
    return ok || fault(p->path, "write a row", EXIT_WORLD, e);
}

void part_abandon(PartWriter *p) {
    if (!p) return;
    H5Fclose(p->file);
    free(p->path);
    free(p);
}

static bool write_image(PartWriter *p, Error *e) {
    ssize_t n = H5Fget_file_image(p->file, NULL, 0);
    if (n <= 0) return fault(p->path, "finish the file", EXIT_WORLD, e);
    void *image = xcalloc((size_t)n, 1);
    WholeFile out;
    bool ok = H5Fget_file_image(p->file, image, (size_t)n) == n ||
              fault(p->path, "copy the file", EXIT_WORLD, e);
    if (ok && (ok = whole_open(&out, p->path, e)))
        ok = whole_write(&out, image, (size_t)n, e) ? whole_commit(&out, e) : whole_discard(&out);
    free(image);
    return ok;
}

bool part_finish(PartWriter *p, const char *text, Error *e) {
    hsize_t size = strlen(text);
    hid_t space = H5Screate_simple(1, &size, NULL);
    hid_t set =
        H5Dcreate2(p->file, "/entries", H5T_STD_U8LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = set >= 0 && H5Dwrite(set, H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) >= 0;
    H5Dclose(set);
    H5Sclose(space);
    ok = H5Fflush(p->file, H5F_SCOPE_GLOBAL) >= 0 && ok;
    ok = ok ? write_image(p, e) : fault(p->path, "finish the file", EXIT_WORLD, e);
    part_abandon(p);
    return ok;
}

PartReader *part_open(const char *path, Error *e) {
    quiet();
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (file < 0) {
        fault(path, "open the file", EXIT_DATA, e);
        return NULL;
    }
    PartReader *p = xcalloc(1, sizeof *p);
    *p = (PartReader){.path = xstrdup(path), .file = file};
    return p;
}

bool part_read(PartReader *p, const char *group, const char *name, int64_t row, int64_t count,
               uint16_t *values, Error *e) {
    char *path = xprintf("%s/%s", group, name);
    hid_t set = H5Dopen2(p->file, path, H5P_DEFAULT), space = H5Dget_space(set);
    free(path);
    hsize_t size[PART_MAX_DIMS + 1] = {0}, start[PART_MAX_DIMS + 1] = {0};
    int n = H5Sget_simple_extent_ndims(space);
    bool ok = set >= 0 && n >= 2 && n <= PART_MAX_DIMS + 1 &&
              H5Sget_simple_extent_dims(space, size, NULL) >= 0 && row >= 0 &&
              (hsize_t)row < size[0];
    if (ok) {
        hsize_t elements = 1;
        start[0] = (hsize_t)row;
        size[0] = 1;
        for (int i = 1; i < n; i++) elements *= size[i];
        ok = elements == (hsize_t)count;
    }
    if (ok) {
        hid_t memory = H5Screate_simple(n, size, NULL);
        ok = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, size, NULL) >= 0 &&
             H5Dread(set, H5T_NATIVE_UINT16, memory, space, H5P_DEFAULT, values) >= 0;
        H5Sclose(memory);
    }
    H5Sclose(space);
    H5Dclose(set);
    return ok || fault(p->path, "read a row", EXIT_DATA, e);
}

char *part_entries(PartReader *p, Error *e) {
    hid_t set = H5Dopen2(p->file, "/entries", H5P_DEFAULT), space = H5Dget_space(set);
    hssize_t n = H5Sget_simple_extent_npoints(space);
    char *text = NULL;
    if (set >= 0 && n >= 0 && n < INT32_MAX) {
        text = xcalloc((size_t)n + 1, 1);
        if (H5Dread(set, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) < 0) {
            free(text);
            text = NULL;
        }
    }
    H5Sclose(space);
    H5Dclose(set);
    if (!text) fault(p->path, "read /entries", EXIT_DATA, e);
    return text;
}

void part_close(PartReader *p) {
    if (!p) return;
    H5Fclose(p->file);
    free(p->path);
    free(p);
}
