extern "C" __global__ void __launch_bounds__(THREADS)
    @name(@arguments) {
  Launch launch = read_launch(parameters);@launch
  apply_lag(launch, parameters);
  take_part(launch, &q_map, &k_map, @partials);
}
