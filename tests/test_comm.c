/* Communicators over host memory. */
#include "tests/comm_cases.h"

int main(int argc, char **argv)
{
    lh_comm *c = NULL;
    lh_stream *s = NULL;
    int alone;

    check_init(argc, argv);
    CHECK_OK(lh_comm_mpi_create(&c, 30));
    if (!c)
        return 1;
    alone = c->size == 1;
    run_cases(c, NULL, NULL);
    lh_comm_destroy(c);
    if (alone) {
        CHECK_OK(lh_comm_self_create(&c));
        run_cases(c, NULL, NULL);
        /* With a device and its stream. */
        CHECK_OK(lh_device_cpu.open(&s, 0, 1, 1));
        run_cases(c, &lh_device_cpu, s);
        lh_comm_destroy(c);
        lh_device_cpu.close(s);
    }
    lh_comm_destroy(NULL);
    lh_comm_mpi_finalize();
    return check_done();
}
