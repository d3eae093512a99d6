/* A libnvrtc of a version that there is not, without what that needs. */
int nvrtcVersion(int *major, int *minor);
int nvrtcVersion(int *major, int *minor) {
    *major = 99;
    *minor = 9;
    return 0;
}
