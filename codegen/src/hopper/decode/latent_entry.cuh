extern "C" __global__ void @cluster__launch_bounds__(THREADS)
    @name(@arguments) {
  Launch launch = read_launch(parameters);@launch
  apply_lag(launch, parameters);
  take_part<@width>(launch, &q_map, &k_map, o, lse, @partials);
}
