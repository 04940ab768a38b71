extern "C" __global__ void __launch_bounds__(THREADS)
    @name(@arguments) {
  Launch launch = read_launch(parameters);@launch
  merge_parts(launch, @partials, o, lse);
}
