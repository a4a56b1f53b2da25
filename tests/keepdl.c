/* Keeps unloaded plugins of Open MPI mapped, so that the leak checker can name them and suppress
 * them. */
int dlclose(void *handle);
int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
